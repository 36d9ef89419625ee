"""The recipe's look for numbers that are read off codes: what it exchanges, where it looks, and what it counts."""

import json
import random
import re
from dataclasses import replace

import pytest
import torch
from lhotse import CutSet

from recipes.talk import leak
from s2s_data.talk import build_talk_corpus
from s2s_model.channels import SpeechTokens
from s2s_model.duplex import DuplexS2SModel
from tests.recipes.builders import RECIPES, TOKENS
from tests.s2s_data.test_talk import SMALL

CONFIG = str(RECIPES / "talk_carried.yaml")


class Tokenizer:
    """One token for each digit, and one for each other word."""

    pad_id, bos_id, eos_id = 0, 1, 2

    def text_to_ids(self, text):
        return [int(piece) + 10 if piece.isdigit() else 3 for piece in re.findall(r"\d|[^\d ]+", text)]

    def ids_to_text(self, ids):
        return "".join(str(i - 10) if i >= 10 else "x" for i in ids)


def test_the_first_digit_of_a_number():
    assert leak.first_digit(Tokenizer(), "10 plus 48 is", "58") == (6, 15)
    assert leak.first_digit(Tokenizer(), "They cost", "7") == (2, 17)
    assert leak.first_digit(Tokenizer(), "They cost", "seven") is None


def test_a_token_s_frame():
    labels = [0, 1, 0, 3, 0, 3, 2, 0, 1, 3, 0, 0, 15, 18, 2, 0]
    assert leak.frame_of(labels, 1, 1, Tokenizer()) == 12
    assert leak.frame_of(labels, 0, 0, Tokenizer()) == 3


def test_another_number_is_as_long_and_begins_otherwise():
    number = leak.Number(0, "It is", "58", 100, 104)
    sounds = {4: [("51", torch.zeros(4)), ("58", torch.zeros(4)), ("7", torch.ones(4))], 5: [("8", torch.zeros(5))]}
    for seed in range(9):
        assert leak.other(number, sounds, random.Random(seed))[0] == "7"
    assert leak.other(number._replace(end=105), sounds, random.Random(0))[0] == "8"
    assert leak.other(number._replace(digits="8", end=105), sounds, random.Random(0)) is None


@pytest.mark.parametrize(("reads_codes", "right", "as_codes"), [(False, 1, 0), (True, 0, 1)])
def test_a_model_that_reads_codes_is_told_from_one_that_computes(monkeypatch, reads_codes, right, as_codes):
    number = leak.Number(0, "10 plus 48 is", "58", 2, 4)

    class Model:
        tokenizer, speech = Tokenizer(), SpeechTokens(4)

    def written(model, batch, audio_BS, turn, place):
        assert (turn, place) == (0, 6)
        return int(audio_BS[0, 2]) + 10 if reads_codes else 15

    monkeypatch.setattr(leak, "written_at", written)
    batch = {"target_audio": torch.full((1, 8), 5.0)}
    found = leak.judge(Model(), batch, number, "71", torch.full((2,), 7.0))
    assert found == {"numbers": 1, "right": 1, "swapped_right": right, "as_the_codes_say": as_codes}
    assert batch["target_audio"].eq(5).all(), "left as it was"
    assert leak.judge(Model(), batch, number._replace(before="a b"), "x7", torch.zeros(2)) == {}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoken") / "talk"
    build_talk_corpus(folder, replace(SMALL, hours=0.2, dialogues_per_shard=64))
    return folder / "corpus"


def test_numbers_are_found_where_they_are_said(spoken):
    cuts = [*CutSet.from_shar(in_dir=str(spoken / "train"))]
    found = [(cut, number) for cut in cuts for number in leak.numbers(cut, ["agent"], 22050)]
    assert found
    for cut, number in found:
        turn = sorted((turn for turn in cut.supervisions if turn.speaker == "agent"), key=lambda turn: turn.start)[
            number.turn
        ]
        assert turn.text == f"{number.before} {number.digits}."
        audio_S = cut.load_target_audio()[0]
        assert abs(audio_S[number.start : number.end]).max() > 0.1
        assert not audio_S[number.end : number.end + 100].any(), "the turn ends with it"


@pytest.fixture
def exported(in_talk, tmp_path):
    from s2s_train.config import load_config

    cfg = load_config(RECIPES / "talk_carried.yaml", [f"model.pretrained_llm={in_talk / 'llm'}", *TOKENS])
    cfg.model.pretrained_lora = None
    DuplexS2SModel(cfg.model).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def arguments(exported, in_talk, spoken, *more):
    data = f"data.validation_ds.datasets={{heldout: {{shar_path: {spoken / 'train'}}}}}"
    return [CONFIG, str(exported), f"model.pretrained_llm={in_talk / 'llm'}", *TOKENS, data, *more]


def test_a_model_that_writes_what_is_right_is_found_right(exported, in_talk, spoken, capsys, monkeypatch):
    """The model says in each frame the frame's own label; which codes it reads changes nothing."""
    from s2s_model import llm, network

    labels = []
    prepare, text_logits = network.DuplexNetwork.prepare_inputs, llm.text_logits

    def prepared(self, batch):
        inputs = prepare(self, batch)
        labels.append(inputs.text_labels_BT)
        return inputs

    def logits(model, hidden, *head):
        return text_logits(model, hidden, *head) if hidden.ndim else torch.nn.functional.one_hot(hidden.long(), 500)

    # The tiny tokenizer has no digits: a token of the turn stands for the number's first.
    def token(tokenizer, before, digits):
        ids = tokenizer.text_to_ids(f"{before} {digits}.")
        return 1, ids[1]

    monkeypatch.setattr(network.DuplexNetwork, "prepare_inputs", prepared)
    monkeypatch.setattr(network.DuplexNetwork, "hidden_states", lambda self, inputs: labels[-1])
    monkeypatch.setattr(llm, "text_logits", logits)
    monkeypatch.setattr(leak, "first_digit", token)
    assert leak.main(arguments(exported, in_talk, spoken)) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts["numbers"] > 0
    assert counts["right"] == counts["swapped_right"] == counts["numbers"]


def test_what_cannot_be_judged_is_told(exported, in_talk, spoken, capsys):
    assert leak.main(arguments(exported, in_talk, spoken, "--set", "nothing")) == 2
    assert "has no 'nothing', only heldout, heldout_voice, heldout_wording: choose one" in capsys.readouterr().err
    assert leak.main(arguments(exported, in_talk, spoken, "--dialogues", "0")) == 2
    assert "no answer of heldout's 0 dialogues ends with a number" in capsys.readouterr().err
