"""Cuts to tensors: shapes, dtypes, what is loaded when, and errors that name the cut."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, MultiCut, Recording
from lhotse.supervision import AlignmentItem

from s2s_data import DataError, DuplexDataset, Turn, UnreadableCutError, read_blend
from s2s_data.audio import load_audio
from s2s_data.loader import dataset_of
from tests.s2s_data.builders import NUM_CODEBOOKS, WordTokenizer, config, dialogue, recording, write_shar

TOKENIZER = WordTokenizer()


def test_batch_of_audio() -> None:
    batch = DuplexDataset(TOKENIZER)[[dialogue("long", 2.4), dialogue("short", 1.6)]]
    assert batch["source_audio"].shape == (2, 38400)
    assert batch["source_audio"].dtype == torch.float32
    assert batch["source_audio_lens"].tolist() == [38400, 25600]
    assert batch["target_audio"].shape == (2, 52920)
    assert batch["target_audio_lens"].tolist() == [52920, 35280]
    assert batch["target_tokens"].shape == batch["source_tokens"].shape == (2, 30)
    assert batch["target_token_lens"].tolist() == batch["source_token_lens"].tolist() == [30, 20]
    assert "target_codes" not in batch
    lens = [value.dtype for key, value in batch.items() if key.endswith("_lens") and isinstance(value, torch.Tensor)]
    assert set(lens) == {torch.int64}
    assert not batch["source_audio"][1, 25600:].any()
    assert batch["source_audio"][1, :25600].any()
    assert batch["target_tokens"][1, 20:].tolist() == [TOKENIZER.pad_id] * 10
    assert batch["cut_ids"] == ["long", "short"]
    assert batch["source_texts"] == ["what is two"] * 2
    assert batch["target_texts"] == ["it is four"] * 2
    assert batch["turns"][0] == [Turn("user", 0.0, 0.8, "what is two"), Turn("agent", 0.88, 0.72, "it is four")]


def test_the_users_text_alone_is_spread_where_the_config_says_so() -> None:
    plain, spread = (dataset_of(config(spread_source_text=key), TOKENIZER)[[dialogue("cut")]] for key in (False, True))
    pad, bos, eos = TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id
    what, is_, two = TOKENIZER.text_to_ids("what is two")
    assert spread["source_tokens"][0, :11].tolist() == [bos, what, pad, pad, is_, pad, pad, two, pad, pad, eos]
    assert plain["source_tokens"][0, :11].tolist() == [bos, what, is_, two, *[pad] * 6, eos]
    assert torch.equal(spread["target_tokens"], plain["target_tokens"])


def test_the_agents_text_alone_is_spread_where_the_config_says_so() -> None:
    plain, spread = (dataset_of(config(spread_target_text=key), TOKENIZER)[[dialogue("cut")]] for key in (False, True))
    pad, bos, eos = TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id
    it, is_, four = TOKENIZER.text_to_ids("it is four")
    assert spread["target_tokens"][0, 11:21].tolist() == [bos, it, pad, is_, pad, pad, four, pad, pad, eos]
    assert plain["target_tokens"][0, 11:21].tolist() == [bos, it, is_, four, *[pad] * 5, eos]
    assert torch.equal(spread["source_tokens"], plain["source_tokens"])


def with_words(cut_id: str, *items: AlignmentItem) -> MonoCut:
    """Return a dialogue whose user's turn, "what is two", has times of words."""
    cut = dialogue(cut_id)
    cut.supervisions[0].alignment = {"word": list(items)}
    return cut


TIMED = (AlignmentItem("what is", 0.0, 0.16), AlignmentItem(" ", 0.16, 0.4), AlignmentItem("two", 0.56, 0.24))


@pytest.mark.parametrize("change", ["none", "truncated", "faster"])
def test_words_times_are_those_of_the_recording_whatever_lhotse_does_to_the_cut(change: str) -> None:
    cut = with_words("cut", *TIMED)
    if change == "truncated":
        cut = cut.truncate(offset=0.08)
    elif change == "faster":
        cut = cut.perturb_speed(2.0)
    (turn, _) = DuplexDataset(TOKENIZER).dialogue(cut).turns
    start_s, factor = {"none": (0.0, 1), "truncated": (-0.08, 1), "faster": (0.0, 0.5)}[change]
    assert turn.start_s == pytest.approx(start_s)
    assert [words.text for words in turn.words] == ["what is", "two"]
    times_s = [(words.start_s, words.duration_s) for words in turn.words]
    assert times_s == [pytest.approx((0.0, 0.16 * factor)), pytest.approx((0.56 * factor, 0.24 * factor))]


def test_spread_text_stands_where_its_words_are_said_and_a_batch_has_no_times() -> None:
    cut = with_words("c", *TIMED)
    plain, spread = (DuplexDataset(TOKENIZER, spread_source_text=key)[[cut]] for key in (False, True))
    pad, bos, eos = TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id
    what, is_, two = TOKENIZER.text_to_ids("what is two")
    assert spread["source_tokens"][0, :11].tolist() == [bos, what, is_, *[pad] * 4, two, pad, pad, eos]
    assert torch.equal(plain["source_tokens"], DuplexDataset(TOKENIZER)[[dialogue("c")]]["source_tokens"])
    assert spread["turns"] == plain["turns"] == DuplexDataset(TOKENIZER)[[dialogue("c")]]["turns"]


def test_words_that_are_not_the_texts_are_told_with_the_cut(caplog: pytest.LogCaptureFixture) -> None:
    DuplexDataset(TOKENIZER)[[with_words("not-spread", *TIMED[1:])]]
    assert not caplog.records
    dataset = DuplexDataset(TOKENIZER, spread_source_text=True)
    for number in range(11):
        dataset[[with_words(f"cut-{number}", *TIMED[1:]), with_words("fine", *TIMED)]]
    told = [record.getMessage() for record in caplog.records]
    assert ["1 turns in 1 dialogues" in told[0], "10 turns in 10 dialogues" in told[1], len(told)] == [True, True, 2]
    assert told[1].endswith("cut cut-9: align its text anew, or take the alignment 'word' off its supervisions")


def with_value(cut_id: str, value: object) -> MonoCut:
    """Return a dialogue both of whose turns have the custom field `value`."""
    cut = dialogue(cut_id)
    for supervision in cut.supervisions:
        supervision.custom = {"value": value}
    return cut


def test_what_the_answer_must_contain_comes_with_the_agents_turns() -> None:
    batch = DuplexDataset(TOKENIZER)[[with_value("a", " forty  two "), with_value("b", None), dialogue("c")]]
    assert [[turn.value for turn in turns] for turns in batch["turns"]] == [[None, "forty two"], [None] * 2, [None] * 2]


@pytest.mark.parametrize("value", [12, True, ["twelve"], "", "  ", "<|3|>"])
def test_a_value_that_is_no_text_is_an_error_with_cut_and_supervision(value: object) -> None:
    cut = with_value("my-cut", value)
    place = re.escape(f"cut my-cut: the value of its supervision {cut.supervisions[1].id} is {value!r}: write the text")
    with pytest.raises(UnreadableCutError, match=place):
        DuplexDataset(TOKENIZER)[[cut]]
    assert DuplexDataset(TOKENIZER).count_tokens(cut) == 3  # planning goes on


def test_channels_arent_mixed_up() -> None:
    cut = dialogue("cut")
    batch = DuplexDataset(TOKENIZER)[[cut]]
    assert torch.equal(batch["source_audio"][0], torch.from_numpy(cut.load_audio()[0]))
    assert torch.equal(batch["target_audio"][0], torch.from_numpy(cut.load_target_audio()[0]))


def test_stored_codes_replace_target_audio() -> None:
    cuts = [dialogue("long", 2.4, codes=True), dialogue("short", 1.6, codes=True)]
    batch = DuplexDataset(TOKENIZER, load_target_audio=False)[cuts]
    assert "target_audio" not in batch
    assert batch["target_codes"].shape == (2, 30, NUM_CODEBOOKS)
    assert batch["target_codes"].dtype == torch.int64
    assert batch["target_code_lens"].tolist() == [30, 20]
    assert torch.equal(batch["target_codes"][1, :20], torch.from_numpy(cuts[1].load_target_codes()).long())
    assert not batch["target_codes"][1, 20:].any()


def test_validation_has_codes_and_audio() -> None:
    batch = DuplexDataset(TOKENIZER)[[dialogue("cut", codes=True)]]
    assert {"target_codes", "target_audio"} <= batch.keys()


def test_batch_of_some_with_codes_falls_back_to_audio() -> None:
    batch = DuplexDataset(TOKENIZER, load_target_audio=False)[[dialogue("a", codes=True), dialogue("b")]]
    assert "target_codes" not in batch
    assert batch["target_audio"].shape[0] == 2


def test_defect_09_audio_is_resampled_to_the_configured_rates() -> None:
    dataset = DuplexDataset(TOKENIZER, source_sample_rate=8000, target_sample_rate=24000)
    batch = dataset[[dialogue("cut", 1.6, source_rate_hz=44100)]]
    assert batch["source_audio_lens"].tolist() == [12800]
    assert batch["target_audio_lens"].tolist() == [38400]
    assert batch["target_tokens"].shape == (1, 20)


def test_part_of_a_recording_is_read_from_both_channels() -> None:
    cut = dialogue("cut", 3.2, codes=True)
    part = cut.truncate(offset=1.6, duration=0.8, preserve_id=True)
    batch = DuplexDataset(TOKENIZER)[[part]]
    assert torch.equal(batch["source_audio"][0], torch.from_numpy(cut.load_audio()[0, 25600:38400]))
    assert torch.equal(batch["target_audio"][0], torch.from_numpy(cut.load_target_audio()[0, 35280:52920]))
    assert torch.equal(batch["target_codes"][0], torch.from_numpy(cut.load_target_codes()[20:30]).long())


def test_codes_of_another_codec_are_refused_naming_both() -> None:
    cut = dialogue("cut", codes=True, fingerprint="old-codec")
    assert "target_codes" in DuplexDataset(TOKENIZER, codec_fingerprint="old-codec")[[cut]]
    with pytest.raises(DataError, match=r"cut cut: .*old-codec, but the model's codec is new-codec"):
        DuplexDataset(TOKENIZER, codec_fingerprint="new-codec")[[cut]]


def test_codes_that_dont_say_their_codec_are_refused() -> None:
    with pytest.raises(DataError, match="a codec that isn't named, but the model's codec is mine"):
        DuplexDataset(TOKENIZER, codec_fingerprint="mine")[[dialogue("cut", codes=True)]]


def test_cut_without_target_audio_names_the_cut_and_its_shard(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", [dialogue("fine"), dialogue("mute", audio=False)])
    cuts = list(read_blend([{"type": "lhotse_shar", "shar_path": shar}]))
    with pytest.raises(DataError, match=r"cut mute of .*/shar/cuts.000000.jsonl.gz has neither target_audio nor"):
        DuplexDataset(TOKENIZER)[CutSet(cuts)]


def test_channels_of_different_duration_are_an_error_past_two_frames() -> None:
    batch = DuplexDataset(TOKENIZER)[[dialogue("near", 1.6, target_duration_s=1.5)]]
    assert batch["target_audio_lens"].tolist() == [35280]
    assert not batch["target_audio"][0, 33075:].any()
    with pytest.raises(DataError, match=r"cut far: its target_audio has 1.20 s but the cut 1.60 s"):
        DuplexDataset(TOKENIZER)[[dialogue("far", 1.6, target_duration_s=1.2)]]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_is_decoded_as_lhotse_does(subtype: str, channels: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, (16000, channels))
    flac = io.BytesIO()
    soundfile.write(flac, noise, 16000, format="FLAC", subtype=subtype)
    flac_recording = Recording.from_bytes(flac.getvalue(), "noise")
    cut = MonoCut("cut", 0, 1.0, channels - 1, recording=flac_recording)
    assert np.array_equal(load_audio(cut, "recording", 16000), cut.load_audio()[0])
    part = MonoCut("part", 0.25, 0.5, channels - 1, recording=flac_recording)
    assert np.array_equal(load_audio(part, "recording", 16000), part.load_audio()[0])


def test_unreadable_audio_names_the_cut() -> None:
    cut = dialogue("broken")
    cut.recording.sources[0].source = b"not a wav file"
    with pytest.raises(DataError, match="cut broken: can't read its recording: "):
        DuplexDataset(TOKENIZER)[[cut]]


def test_stereo_user_audio_is_averaged() -> None:
    cut = dialogue("cut", 1.6)
    left, right = (recording(name, 1.6, 16000, seed).load_audio()[0] for seed, name in enumerate("lr"))
    wav = io.BytesIO()
    soundfile.write(wav, np.stack([left, right], axis=1), 16000, format="WAV", subtype="FLOAT")
    stereo = MultiCut("cut", 0, 1.6, [0, 1], recording=Recording.from_bytes(wav.getvalue(), "lr"), custom=cut.custom)
    batch = DuplexDataset(TOKENIZER)[[stereo]]
    np.testing.assert_allclose(batch["source_audio"][0].numpy(), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("roles", "message"), [(([], ["agent"]), "input_roles is empty"), ((["x"], ["x"]), "one role")]
)
def test_roles_are_checked(roles: tuple[list[str], list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DuplexDataset(TOKENIZER, input_roles=roles[0], output_roles=roles[1])


def test_a_batch_knows_whose_text_is_alone() -> None:
    alone, spoken = dialogue("alone"), dialogue("spoken")
    alone.custom["text_only"] = True
    assert DuplexDataset(TOKENIZER)[[alone, spoken]]["text_only"].tolist() == [True, False]
    alone.custom["text_only"] = "yes"
    with pytest.raises(UnreadableCutError, match=r"cut alone.*text_only is 'yes': write true or false"):
        DuplexDataset(TOKENIZER)[[alone]]


def test_a_lead_is_the_agents_alone_and_needs_spread_text(caplog: pytest.LogCaptureFixture) -> None:
    keys: dict[str, Any] = {"spread_source_text": True, "spread_target_text": True}
    cut = dialogue("cut")
    for turn in cut.supervisions:
        words = [AlignmentItem(word, turn.start + 0.16 * (i + 2), 0.08) for i, word in enumerate(turn.text.split())]
        turn.alignment = {"word": words}
    plain, led = (dataset_of(config(**keys, lead_target_text_by=lead), TOKENIZER)[[cut]] for lead in (0, 2))
    assert torch.equal(plain["source_tokens"], led["source_tokens"])
    said = [(batch["target_tokens"][0] > TOKENIZER.eos_id).nonzero()[:, 0].tolist() for batch in (plain, led)]
    assert said[1] == [frame - 2 for frame in said[0]]
    assert "no times of words" not in caplog.text
    dataset_of(config(**keys, lead_target_text_by=2), TOKENIZER)[[dialogue("plain")]]
    assert (
        "lead_target_text_by doesn't move the text of 1 turns in 1 dialogues so far, the last is cut plain"
        in caplog.text
    )
    with pytest.raises(DataError, match=r"data\.lead_target_text_by is -1: give 0 or more"):
        dataset_of(config(**keys, lead_target_text_by=-1), TOKENIZER)
    with pytest.raises(DataError, match=r"lead_target_text_by has no effect without data\.spread_target_text"):
        dataset_of(config(lead_target_text_by=2), TOKENIZER)
