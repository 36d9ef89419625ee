"""The recipe's reader: what it reads is a run's text channels, it learns, and a run starts in what it wrote."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.talk import read
from recipes.talk.read import Dialogues, Reader, Remembering, is_right
from s2s_data.talk import FRAMES, SKILLS, TalkConfig, ask, dialogue, split_cases
from s2s_model.network import DuplexNetwork
from s2s_train.config import load_config
from tests.recipes.builders import READ_ONCE, RECIPES, TOKENS
from tests.s2s_data.builders import WordTokenizer

TRAINING, CASES, WORDINGS = split_cases(seed=0)
CORPUS = TalkConfig()
CONFIG = RECIPES / "talk_carried.yaml"


def config(talk, *overrides):
    return load_config(CONFIG, [f"model.pretrained_llm={talk / 'llm'}", *TOKENS, *overrides])


def test_channels_say_the_whole_dialogue_and_workers_share_them():
    dialogues = Dialogues("read", TRAINING, CORPUS, WordTokenizer(), batch=3)
    first = next(iter(dialogues))
    assert first.agent_BT.shape == first.user_BT.shape
    dialogues = [*itertools.islice(dialogues, 8)]
    names = sorted(talk.dialogue_id for channels in dialogues for talk in channels.talks)
    assert names == [f"read-{i:06d}" for i in range(24)], "each once"
    pools = [sorted(channels.lens_B.tolist() for channels in pool) for pool in (dialogues[:4], dialogues[4:])]
    assert all(before[-1] <= behind[0] for pool in pools for before, behind in itertools.pairwise(pool)), "like lengths"
    for tokens_T, talk in zip(first.user_BT, first.talks, strict=True):
        assert tokens_T.unique().numel() > 3
        text = " ".join(exchange.question for exchange in talk.exchanges)
        said = tokens_T[tokens_T > WordTokenizer.eos_id]
        assert said.tolist() == WordTokenizer().text_to_ids(text)


@pytest.mark.parametrize("lead", [0, 4])
def test_the_agent_s_text_goes_ahead_as_in_a_run(in_talk, lead):
    from s2s_data.talk.corpus import text_turns_of

    reader = Reader(config(in_talk, f"data.lead_target_text_by={lead}"), processes=0)
    dialogues = reader._dialogues("read", TRAINING, 2)
    dialogues.tokenizer = Remembering(WordTokenizer())
    agent_T, _, talk = dialogues.channels(0)
    turns = text_turns_of(talk, CORPUS, lambda span: len(WordTokenizer().text_to_ids(f" {span}")))
    (first, *_) = [turn for turn in turns if turn.role == "agent"]
    begin = [first.start + start for _, start, _ in first.times]
    said = [frame for frame in range(first.start, first.end) if agent_T[frame] > WordTokenizer.eos_id]
    spans = [len(span.split()) for span in first.spans]
    written = [said[sum(spans[:i])] for i in range(len(spans))]
    if lead:
        assert written[0] == first.start + 1, "behind the turn's control token"
        assert all(frame < at for frame, at in zip(written[1:], begin[1:], strict=True))
    else:
        assert written == begin


def test_what_a_run_would_refuse_is_not_read(in_talk):
    with pytest.raises(ValueError, match=r"lead_target_text_by has no effect without data\.spread_target_text"):
        Reader(config(in_talk, "data.spread_target_text=false"), processes=0)


def test_nothing_held_out_is_read_whatever_the_run_s_seed(in_talk, monkeypatch):
    reader = Reader(config(in_talk, "seed=7"), processes=0)
    read_ = []

    def note(channels):
        read_.extend(channels.talks)
        return sum((weight**2).sum() for weight in reader.weights)

    monkeypatch.setattr(reader, "loss", note)
    reader.train(seconds=3, batch=64)
    exchanges = [exchange for talk in read_ for exchange in talk.exchanges]
    held_out = {
        ask(skill, frame, case).question
        for skill in SKILLS
        for frame in FRAMES
        for case in CASES.cases.get(skill.name, ())
    }
    assert len(exchanges) > 500
    assert not held_out & {exchange.question for exchange in exchanges}
    assert not WORDINGS.wordings & {(exchange.kind, exchange.wording) for exchange in exchanges}


def test_it_learns_what_it_reads(in_talk):
    reader = Reader(config(in_talk), processes=0)
    channels = next(iter(Dialogues("read", TRAINING, CORPUS, reader.network.tokenizer, batch=4)))
    optimizer = torch.optim.AdamW(reader.weights, 1e-2)
    losses = []
    for _ in range(80):
        losses.append(reader.loss(channels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    frozen = [weight for weight in reader.network.parameters() if weight.requires_grad and weight.grad is None]
    assert all(weight.grad is not None for weight in reader.weights)
    assert frozen, "heads and embeddings of what isn't read stay as they are"


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ([0, 7, 0, 8, 0], True),
        ([7, 7, 8, 8, 0], True),  # each before its time
        ([0, 7, 0, 9, 0], False),
        ([0, 0, 0, 8, 0], False),
        ([8, 7, 0, 8, 0], False),  # not the next one
        ([0, 7, 0, 8, 8], False),
    ],
)
def test_a_word_counts_where_it_may_stand(written, right):
    assert is_right(written, [0, 7, 0, 8, 0], pad_id=0) == right


def test_an_answer_is_right_only_if_every_frame_is(in_talk, monkeypatch):
    reader = Reader(config(in_talk), processes=0)
    vocabulary = reader.network.llm.get_input_embeddings().weight.shape[0]
    pad_id, bos_id = reader.network.tokenizer.pad_id, reader.network.tokenizer.bos_id
    spoilt = []

    def predicted(inputs):
        written_BT = inputs.text_labels_BT.clone()
        if spoilt:  # where the first answer of the first dialogue has a word, or none between two
            start = (written_BT[0] == bos_id).nonzero()[0, 0] + 1
            (frames,) = ((written_BT[0, start:] == pad_id) == (spoilt[0] == "silence")).nonzero(as_tuple=True)
            written_BT[0, start + frames[0]] = bos_id
        return torch.nn.functional.one_hot(written_BT[inputs.valid_BT], vocabulary).float(), None

    monkeypatch.setattr(reader, "_predicted", predicted)
    dialogues = 5  # the first of the split, whatever their lengths
    expected = [dialogue("heldout", i, CASES, ["any"], seed=0, pause_share=0, barge_in_share=0.15) for i in range(5)]
    right, asked = reader.answers("heldout", CASES, dialogues)
    assert right == asked
    assert sum(asked.values()) == sum(
        exchange.value is not None and i not in talk.barge_ins
        for talk in expected
        for i, exchange in enumerate(talk.exchanges)
    )
    first = next(i for i, exchange in enumerate(expected[0].exchanges) if i not in expected[0].barge_ins)
    assert (first, expected[0].exchanges[0].value is None) == (0, False)
    for kind in ("word", "silence"):
        spoilt[:] = [kind]
        right, asked = reader.answers("heldout", CASES, dialogues)
        assert sum(right.values()) == sum(asked.values()) - 1


def test_a_run_starts_in_what_was_read(in_talk, capsys):
    llm = f"model.pretrained_llm={in_talk / 'llm'}"
    assert read.main([str(CONFIG), "reader", *READ_ONCE, llm]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {line["set"] for line in lines if "set" in line} == {"heldout", "heldout_wording"}
    saved = load_file("reader/adapter_model.safetensors")
    cfg = config(in_talk, "model.pretrained_lora=reader", "model.pretrained_asr=null")
    state = DuplexNetwork(cfg.model, cfg.data.frame_length).llm.state_dict()
    adapters = {name: value for name, value in state.items() if ".lora_" in name}
    assert len(adapters) == len(saved)
    for name, value in adapters.items():
        assert torch.equal(value, saved["base_model.model." + name.replace(".default", "")])
    assert any(value.any() for name, value in adapters.items() if ".lora_B." in name), "they were trained"
    assert read.main([str(CONFIG), "reader", *READ_ONCE, llm]) == 2
    assert "reader is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [("model.lora=null", "model.lora is null"), ("model.predict_user_text=false", "no question to be read")],
)
def test_a_config_that_cant_be_read_for_is_refused(in_talk, capsys, override, message):
    overrides = [f"model.pretrained_llm={in_talk / 'llm'}", override, "model.delay_source_text_by=0"]
    assert read.main([str(CONFIG), "reader", *READ_ONCE, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not Path("reader").exists()
