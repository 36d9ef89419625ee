"""When the recipe's texts are written: the user's once it is heard, the agent's before its codes could tell it."""

import re
from dataclasses import replace

import pytest
import torch
from lhotse import CutSet
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from recipes.talk.align import LATE_S, align
from s2s_data.demo.corpus import agent_speech
from s2s_data.loader import dataset_of
from s2s_data.talk import build_talk_corpus, dialogue, split_cases
from s2s_data.talk.corpus import _answer, lay_out, render
from s2s_model.codecs import load_codec
from s2s_train.config import load_config
from tests.recipes.builders import RECIPES
from tests.s2s_data.test_talk import SMALL

TRAINING, _, _ = split_cases(seed=0)
TOLD_AHEAD = 4  # frames, at most; in the agent's own voice too


class DigitTokenizer:
    """One token for each digit, each space before one, and each other word, as the recipe's LLM at worst."""

    pad_id, bos_id, eos_id = 0, 1, 2

    def text_to_ids(self, text):
        return [3 + sum(map(ord, piece)) % 997 for piece in re.findall(r"\d| (?=\d)|[^\d ]+", text)]


DIGITS = {DigitTokenizer().text_to_ids(str(digit))[0] for digit in range(10)}


def talks(count):
    made = (dialogue("train", i, TRAINING, ["any"], seed=0, pause_share=0.0, barge_in_share=0.0) for i in range(count))
    return [talk for talk in made if any(re.search(r"\d", exchange.answer) for exchange in talk.exchanges)]


@pytest.mark.parametrize("numbers", [("fifty eight", "twelve"), ("sixty one", "thirteen"), ("one", "nine")])
def test_the_published_codec_s_codes_tell_of_sound_to_come(numbers):
    codec = load_codec(str(RECIPES / "codec.nemo"))
    phrases = agent_speech(["four plus eight is", *numbers], codec.sample_rate, SMALL.agent_voice)
    _, before_S, *both = [torch.from_numpy(phrase) for phrase in phrases]
    audio_BS = pad_sequence([torch.cat([before_S, number_S]) for number_S in both], batch_first=True)
    codes_BTK, _ = codec.encode(audio_BS, torch.full((2,), audio_BS.shape[1]))
    first_that_differs = int((codes_BTK[0] != codes_BTK[1]).any(dim=1).nonzero()[0])
    assert 0 < len(before_S) // codec.samples_per_frame - first_that_differs <= TOLD_AHEAD


@pytest.mark.parametrize("opening", ["All right.", "Yes.", "Gladly."])
def test_the_control_code_in_an_answer_s_first_frame_hides_nothing_of_its_first_word(opening):
    codec = load_codec(str(RECIPES / "codec.nemo"))
    size, before = codec.samples_per_frame, 8  # frames
    turn = _answer([opening, "58."], 0, SMALL, None)

    def loss(missing):
        """What the codes in frames up to the control code's tell of the next sounds, if so many frames are missing."""
        audio_S = pad(torch.from_numpy(turn.audio[missing * size :]), (before * size, 6 * size))
        codes_1TK, frames_1 = codec.encode(audio_S[None], torch.tensor([len(audio_S)]))
        hidden_1TK = codes_1TK.clone()
        hidden_1TK[0, : before + 1] = codec.silence_codes()
        first = before + turn.words[0][1] - missing
        word, without = (codec.decode(c, frames_1)[0][0, first * size :][: 4 * size] for c in (codes_1TK, hidden_1TK))
        return (word - without).norm() / word.norm()

    assert loss(missing=0) < 0.05
    assert loss(missing=1) > 0.15, "with a single frame of silence the word begins otherwise"


@pytest.mark.parametrize("lead", [None, 0])
def test_numbers_are_written_before_their_codes_tell_them(lead, tmp_path):
    overrides = [] if lead is None else [f"data.lead_target_text_by={lead}"]
    cfg = load_config(RECIPES / "talk.yaml", overrides)
    dataset = dataset_of(cfg.data, DigitTokenizer())
    in_time, late = 0, []
    for talk in talks(25):
        cut = render(talk, SMALL, SMALL.user_voices[0], tmp_path)
        tokens = dataset[[cut]]["target_tokens"][0].tolist()
        for turn in [turn for turn in lay_out(talk, SMALL, SMALL.user_voices[0])[0] if turn.role == "agent"]:
            numbers = [(first, phrase) for phrase, first, _ in turn.words[1:] if re.match(r"\d", phrase)]
            frames = [i for i in range(turn.start, turn.end) if tokens[i] in DIGITS]
            frames = frames[sum(c.isdigit() for c in turn.words[0][0]) :]
            for first, phrase in numbers:
                for digit in re.match(r"\d+", phrase).group():
                    frame = frames.pop(0)
                    written = frame - cfg.model.advance_text_channel_by
                    newest_codes = written - 1 - cfg.model.delay_speech_channel_by  # that it is predicted from
                    if newest_codes < turn.start + first - TOLD_AHEAD:
                        in_time += 1
                    else:
                        late.append((turn.text, phrase, digit))
            assert not frames
    if lead is None:
        assert in_time > 20
        assert not late
    else:
        assert len(late) > 20
        assert not in_time, "without a lead all could be read off"


def test_a_number_is_heard_to_its_end_before_its_last_digit_is_written(tmp_path):
    """By the published encoder; and what the agent computes from it is due later still."""
    build_talk_corpus(tmp_path, replace(SMALL, hours=0.25, pause_share=0.0, barge_in_share=0.0))
    align(RECIPES / "encoder.nemo", [tmp_path / "corpus/train"])
    cfg = load_config(RECIPES / "talk.yaml")
    dataset = dataset_of(cfg.data, DigitTokenizer())
    frame_s = cfg.data.frame_length
    needed_s, left = [], []  # from where the last digit stands: until it is heard, and frames until the answer's is due
    for cut in CutSet.from_shar(in_dir=str(tmp_path / "corpus/train")):
        batch = dataset[[cut]]
        asked, answered = batch["source_tokens"][0].tolist(), batch["target_tokens"][0].tolist()
        turns = sorted(cut.supervisions, key=lambda turn: turn.start)
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            last = question.alignment["word"][-1]
            if not (last.score and last.symbol[-2].isdigit()):  # a number, and "?" or "."
                continue
            digit = max(i for i in range(round(question.end / frame_s)) if asked[i] in DIGITS)
            needed_s.append(last.end + LATE_S - digit * frame_s)
            span = range(round(answer.start / frame_s), round(answer.end / frame_s))
            left += [i - cfg.model.advance_text_channel_by - digit for i in span if answered[i] in DIGITS][:1]

    def share_in_time(delay):
        return sum(delay * frame_s >= each_s - 1e-3 for each_s in needed_s) / len(needed_s)

    assert len(needed_s) > 30
    assert share_in_time(cfg.model.delay_source_text_by) > 0.9
    assert share_in_time(4) < 0.6
    assert min(left) - cfg.model.delay_source_text_by >= 3, "what is computed is due before its question is written"


def test_no_answer_begins_with_what_was_computed():
    """Nothing is written before a turn begins, so what the first phrase says could be read off."""
    talks = (dialogue("train", i, TRAINING, ["any"], seed=0, pause_share=0.2, barge_in_share=0.5) for i in range(3000))
    exchanges = [exchange for talk in talks for exchange in talk.exchanges]
    assert any(exchange.kind == "plus again" for exchange in exchanges)
    for exchange in exchanges:
        assert not re.search(r"\d", exchange.phrases[0]), exchange
        assert exchange.value is None or exchange.value not in exchange.phrases[0], exchange
