import logging

import pytest
import torch

from tests.s2s_model import builders

logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)


@pytest.fixture(scope="session")
def llm_dir(tmp_path_factory):
    return builders.make_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def codec_path(tmp_path_factory):
    return builders.make_codec(tmp_path_factory.mktemp("codec") / "codec.nemo")


@pytest.fixture
def config(llm_dir, codec_path):
    return builders.model_config(llm_dir, codec_path)


@pytest.fixture
def model(config):
    from s2s_model import DuplexS2SModel

    torch.manual_seed(0)
    return DuplexS2SModel(config).eval()
