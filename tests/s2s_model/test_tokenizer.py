import logging
import re

import pytest

from s2s_model.llm import load_llm
from s2s_model.tokenizer import DuplexTokenizer, load_tokenizer
from tests.s2s_model.builders import BOS, EOS, PAD
from tests.s2s_model.families import make_family_weights
from tests.s2s_model.gguf_files import write_gguf

CORPUS = [
    "hello world how are you today",
    "I'm fine, thank you. And you?",
    "the weather is nice , isn't it",
    "grüß dich, schöne Welt",
] * 20
LLAMA_3_SPARE = ["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_1|>"]
LLAMA_3_USED = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"]
QWEN_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def byte_level(special, **roles):
    """A byte-level BPE, as Llama 3, Qwen and GPT-2 have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return as_hugging_face(tokenizer, **roles)


def metaspace(special, **roles):
    """A unigram model with `▁` for spaces, as sentencepiece makes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return as_hugging_face(tokenizer, **roles)


def as_hugging_face(tokenizer, **roles):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def llama_3():
    roles = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    tokenizer = byte_level([*LLAMA_3_USED, *LLAMA_3_SPARE], **roles)
    tokenizer.chat_template = "<|start_header_id|>{{ messages[0].content }}<|eot_id|>"
    return tokenizer


def qwen_2_5():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
    tokenizer = byte_level(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens(["<tool_call>", "<|fim_pad|>"])  # added, but not special
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def phi_3():
    special = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|placeholder1|>"]
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return metaspace(special, **roles)


def gpt_2():
    return byte_level(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def llama_2():
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return metaspace(["<unk>", "<s>", "</s>", "<pad>"], **roles)


# --- control tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message", "keys"),
    [
        (
            llama_3,
            r"no pad token: set model\.text_pad_token to .*, for example <\|finetune_right_pad_id\|> or "
            r"<\|reserved_special_token_0\|> or <\|reserved_special_token_1\|>$",
            {"pad_token": "<|finetune_right_pad_id|>"},
        ),
        (
            qwen_2_5,
            r"no bos token: set model\.text_bos_token to .*, for example <\|fim_pad\|> or <\|object_ref_start\|>",
            {"bos_token": "<|object_ref_start|>"},
        ),
        (
            phi_3,
            r"'<\|endoftext\|>' as pad and as eos.* set model\.text_pad_token to .* example <\|placeholder1\|>",
            {"pad_token": "<|placeholder1|>"},
        ),
        (
            gpt_2,
            r"no pad token: set model\.text_pad_token to a token .* \(it has no unused special tokens\); "
            r".*'<\|endoftext\|>' as bos and as eos.*: set model\.text_bos_token to",
            {"pad_token": "ÿ", "bos_token": "þ"},
        ),
    ],
)
def test_a_tokenizer_that_lacks_a_control_token_is_refused_and_works_with_the_key(make, message, keys):
    tokenizer = make()
    with pytest.raises(ValueError, match=message):
        DuplexTokenizer(tokenizer)
    settled = DuplexTokenizer(tokenizer, **keys)
    for name, token in keys.items():
        assert getattr(settled, name) == token
    assert len({settled.pad_id, settled.bos_id, settled.eos_id}) == 3
    for token, token_id in ((settled.pad_token, settled.pad_id), (settled.eos_token, settled.eos_id)):
        assert tokenizer.convert_tokens_to_ids(token) == token_id


def test_all_that_needs_settling_is_said_at_once_and_its_first_suggestions_work():
    tokenizer = byte_level(LLAMA_3_SPARE)
    with pytest.raises(ValueError, match=r"no pad token.*no bos token.*no eos token") as refused:
        DuplexTokenizer(tokenizer)
    suggested = re.findall(r"set model\.text_(\w+) to .*?, for example (\S+?)(?: or|;|$)", str(refused.value))
    assert [key for key, _ in suggested] == ["pad_token", "bos_token", "eos_token"]
    settled = DuplexTokenizer(tokenizer, **dict(suggested))
    assert len({settled.pad_id, settled.bos_id, settled.eos_id}) == 3
    with pytest.raises(ValueError, match=r"'<nil>' isn't one token.*as bos and as eos.* set model\.text_eos_token"):
        DuplexTokenizer(llama_3(), pad_token="<nil>", bos_token="<|end_of_text|>")


def test_the_key_named_is_one_that_isnt_set_yet():
    with pytest.raises(ValueError, match=r"as pad and as bos.* set model\.text_pad_token"):
        DuplexTokenizer(qwen_2_5(), bos_token="<|endoftext|>")
    with pytest.raises(ValueError, match=r"as pad and as eos.* set model\.text_eos_token"):
        DuplexTokenizer(phi_3(), pad_token="<|endoftext|>")


@pytest.mark.parametrize("token", ["<|nothing|>", "hello world", ""])
def test_a_control_token_must_be_one_token_of_the_vocabulary(token):
    with pytest.raises(ValueError, match=r"model\.text_pad_token: '.*' isn't one token.*<\|finetune_right_pad_id\|>"):
        DuplexTokenizer(llama_3(), pad_token=token)


@pytest.mark.parametrize("make", [llama_2, phi_3, qwen_2_5])
def test_text_that_spells_out_control_tokens_has_none(make, caplog):
    keys = {phi_3: {"pad_token": "<|placeholder1|>"}, qwen_2_5: {"bos_token": "<|fim_pad|>"}}.get(make, {})
    tokenizer = DuplexTokenizer(make(), **keys)
    control = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    text = f"hello {tokenizer.eos_token} world{tokenizer.bos_token}{tokenizer.pad_token}"
    with caplog.at_level(logging.WARNING, logger="s2s_model.tokenizer"):
        ids = tokenizer.text_to_ids(text)
        tokenizer.text_to_ids(text)
    assert not control & set(ids)
    assert tokenizer.ids_to_text(ids).split() == ["hello", "world"]
    assert len(caplog.records) == 1
    assert "left out" in caplog.text


def test_a_tokenizer_of_a_larger_vocabulary_than_the_llms_is_refused():
    tokenizer = DuplexTokenizer(qwen_2_5(), bos_token="<|fim_pad|>")
    tokenizer.check_fits(tokenizer.bos_id + 1)
    with pytest.raises(
        ValueError, match=rf"ids go up to {tokenizer.bos_id}, but model\.pretrained_llm embeds 300 tokens"
    ):
        tokenizer.check_fits(300)


# --- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", sorted(set(CORPUS)))
@pytest.mark.parametrize("make", [llama_2, llama_3])
def test_a_turns_ids_give_its_text_back(make, text):
    tokenizer = DuplexTokenizer(make(), **({"pad_token": LLAMA_3_SPARE[0]} if make is llama_3 else {}))
    ids = tokenizer.text_to_ids(text)
    assert len(ids) > 1
    turn = [tokenizer.bos_id, *ids[:2], tokenizer.pad_id, *ids[2:], tokenizer.pad_id, tokenizer.eos_id]
    assert tokenizer.ids_to_text(turn) == text


# --- loading and saving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama_3, llama_2])
def test_a_saved_tokenizer_is_the_same(make, tmp_path):
    tokenizer = DuplexTokenizer(make(), pad_token="<|finetune_right_pad_id|>" if make is llama_3 else "<pad>")
    tokenizer.save_pretrained(tmp_path)
    names = {name: getattr(tokenizer, name) for name in ("pad_token", "bos_token", "eos_token")}
    again = load_tokenizer(str(tmp_path), **names)
    for attribute in ("pad_id", "bos_id", "eos_id", *names):
        assert getattr(again, attribute) == getattr(tokenizer, attribute)
    for text in CORPUS[:4]:
        assert again.text_to_ids(text) == tokenizer.text_to_ids(text)


@pytest.mark.parametrize("beside", [True, False])
def test_a_gguf_file_has_its_tokenizer_whatever_lies_beside_it(tmp_path, beside):
    llm = load_llm(make_family_weights("llama-tinyllama", tmp_path / "source"), pretrained_weights=True)
    tokenizer = load_tokenizer(write_gguf(tmp_path / "source" / "llm.gguf" if beside else tmp_path / "llm.gguf", llm))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (PAD, BOS, EOS)
    ids = tokenizer.text_to_ids("hello world")
    assert len(ids) < len("hello world")  # merged
    assert tokenizer.ids_to_text(ids) == "hello world"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .* which model\.pretrained_llm names"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match=r"no tokenizer at .* which model\.tokenizer_path names"):
        load_tokenizer(str(tmp_path), key="model.tokenizer_path")


def test_a_mistyped_path_is_refused_under_the_key_that_named_it(tmp_path):
    (tmp_path / "qwen").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model\.tokenizer_path: no folder .*qwn .* did you mean .*/qwen\?$"):
        load_tokenizer(str(tmp_path / "qwn"), key="model.tokenizer_path")
