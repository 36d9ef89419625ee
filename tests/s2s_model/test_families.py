import pytest

from tests.s2s_model.families import FAMILIES
from tests.s2s_model.family_checks import CHECKS, build


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_llm_family_trains_decodes_adapts_exports_and_streams(family, check, codec_path, tmp_path):
    CHECKS[check](build(family, codec_path, tmp_path), tmp_path)
