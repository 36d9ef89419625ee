from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoConfig, LlamaForCausalLM

from recipes.talk import read, train_encoder
from tests.recipes.builders import ONE_STEP, READ_ONCE, RECIPES
from tests.s2s_data.builders import dialogues, write_shar
from tests.s2s_model.builders import make_codec, make_llm


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the recipe reads, all of it tiny; the codes aren't stored, the codec makes them."""
    folder = tmp_path_factory.mktemp("talk")
    make_llm(folder / "llm")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what learns from these weights doesn't depend on the tests before
        LlamaForCausalLM(AutoConfig.from_pretrained(folder / "llm")).save_pretrained(folder / "llm")
    make_codec(folder / "codec.nemo")
    for name in ("train", "heldout", "heldout_voice", "heldout_wording"):
        write_shar(folder / "corpus" / name, dialogues(name, 6))
    texts = dialogues("text", 6)
    for cut in texts:
        cut.custom["text_only"] = True
    write_shar(folder / "text", texts)
    for name in ("noise", "rooms"):
        (folder / name).mkdir()
        soundfile.write(folder / name / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16000), 16000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALK", str(folder))
        assert train_encoder.main([str(RECIPES / "talk.yaml"), str(folder / "encoder.nemo"), *ONE_STEP]) == 0
        llm = f"model.pretrained_llm={folder / 'llm'}"
        assert read.main([str(RECIPES / "talk_carried.yaml"), str(folder / "reader-8192"), *READ_ONCE, llm]) == 0
    return folder


@pytest.fixture
def in_talk(talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, from which the recipe finds `talk`."""
    monkeypatch.setenv("TALK", str(talk))
    monkeypatch.chdir(tmp_path)
    return talk
