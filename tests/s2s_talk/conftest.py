import logging
from collections.abc import Iterator
from typing import Any

import pytest

from s2s_talk.talker import Talker
from tests.s2s_talk.builders import PATIENT, make_model, server

logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def talker(model: Any) -> Talker:
    """One for all tests: each has it for itself, and a server clears it first."""
    return Talker(model, 3, PATIENT.max_duration_s)


@pytest.fixture
def address(talker: Talker) -> Iterator[str]:
    with server(talker) as at:
        yield at
