"""Augmentations keep audio, codes and text together, to the frame."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, Recording, RecordingSet
from omegaconf import OmegaConf

from s2s_data import DataError, FrameGrid, Turn
from s2s_data.augment.chain import Augmentations, build_augmentations
from s2s_data.augment.config import AugmentConfig
from s2s_data.augment.frames import frame_start
from s2s_data.augment.rir import convolved
from s2s_data.batch import TimedWords
from s2s_data.dialogue import Dialogue, FloatArray, IntArray
from s2s_data.errors import UnreadableCutError
from tests.s2s_data.builders import SOURCE_RATE_HZ, TARGET_RATE_HZ

WHERE = "data.train_ds.augment"
FRAME_S = 0.08
SOURCE_HOP, TARGET_HOP = 1280, 1764  # samples of a frame
NUM_FRAMES = 60
SILENCE_K = np.array([-1, -2], dtype=np.int64)
# The user from frame 5 to 15, the agent from 20 to 40, the user from 45 to 50, the agent from 54 to 58.
TURNS = (
    Turn("user", 0.4, 0.8, "what is two and two"),
    Turn("agent", 1.6, 1.6, "one two three four five six seven eight nine ten", "ten"),
    Turn("user", 3.6, 0.4, "thank you"),
    Turn("agent", 4.32, 0.32, "you are welcome"),
)


def frame_marks(num_frames: int, hop: int) -> FloatArray:
    """Audio whose samples tell their frame: frame f is f + 1 all through."""
    return np.repeat(np.arange(1, num_frames + 1, dtype=np.float32), hop)


def talk(*, audio: bool = True, codes: bool = True, **fields_: Any) -> Dialogue:
    """A dialogue whose samples and codes tell the frame they come from; its arrays refuse to be written to."""
    duration_s = NUM_FRAMES * FRAME_S
    made = Dialogue(
        cut_id="talk",
        duration_s=duration_s,
        grid=FrameGrid.of(duration_s, FRAME_S, SOURCE_RATE_HZ),
        turns=TURNS,
        source_S=frame_marks(NUM_FRAMES, SOURCE_HOP),
        source_rate_hz=SOURCE_RATE_HZ,
        target_R=frame_marks(NUM_FRAMES, TARGET_HOP) if audio else None,
        target_rate_hz=TARGET_RATE_HZ,
        codes_TK=np.arange(1, NUM_FRAMES + 1)[:, None].repeat(2, axis=1) if codes else None,
    )
    made = replace(made, **fields_)
    for array in (made.source_S, made.target_R, made.codes_TK):
        if array is not None:
            array.flags.writeable = False
    return made


def sounding(**fields_: Any) -> Dialogue:
    """A dialogue of noise in both channels, without codes."""
    rng = np.random.default_rng(0)
    source_S, target_R = (
        rng.uniform(-0.1, 0.1, NUM_FRAMES * hop).astype(np.float32) for hop in (SOURCE_HOP, TARGET_HOP)
    )
    return talk(**{"source_S": source_S, "target_R": target_R, "codes": False, **fields_})


def augmentations(
    plain: Mapping[str, Mapping[str, Any]], silence_codes_K: IntArray | None = SILENCE_K
) -> Augmentations:
    """Augmentations from plain dicts, as an application makes them from YAML."""
    entries = {name: {"prob": 1.0, **entry} for name, entry in plain.items()}
    cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AugmentConfig), entries))
    assert isinstance(cfg, AugmentConfig)
    return build_augmentations(cfg, silence_codes_K=silence_codes_K, where=WHERE)


def write_clip(path: Path, samples: npt.ArrayLike, rate_hz: int = SOURCE_RATE_HZ) -> str:
    soundfile.write(path, np.asarray(samples, dtype=np.float32), rate_hz, subtype="FLOAT")
    return str(path)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """Half a second of noise at another rate than the user's."""
    return write_clip(tmp_path / "noise.wav", np.random.default_rng(1).normal(0, 0.1, 11025), 22050)


def marks_of(audio_S: FloatArray, hop: int) -> list[int]:
    """Which frames the audio is made of; fails if a frame's samples aren't all of one."""
    frames = audio_S.reshape(-1, hop)
    assert (frames == frames[:, :1]).all()
    return [int(mark) for mark in frames[:, 0]]


def rms(audio_S: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(audio_S, dtype=np.float64))))


def peak_s(audio_S: FloatArray, rate_hz: int) -> float:
    return int(np.argmax(np.abs(audio_S))) / rate_hz


def delay_of(changed_S: FloatArray, original_S: FloatArray) -> int:
    """By how many samples ``changed_S`` comes late, by cross-correlation."""
    size = 2 * len(original_S)
    spectrum = np.fft.rfft(changed_S, size) * np.conj(np.fft.rfft(original_S, size))
    best = int(np.argmax(np.fft.irfft(spectrum, size)))
    return best if best < len(original_S) else best - size


def assert_same(left: Dialogue, right: Dialogue) -> None:
    for item in fields(Dialogue):
        one, other = getattr(left, item.name), getattr(right, item.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, item.name


EVERY_ENTRY: dict[str, dict[str, Any]] = {
    "role_swap": {},
    "early_interruption": {},
    "random_silence": {},
    "speed": {"factor_max": 0.97},
    "volume": {},
    "rir": {"files": "?"},
    "noise": {"files": "?"},
    "telephony": {},
    "codec": {},
}


def entry_of(name: str, clip: str) -> dict[str, Any]:
    entry = EVERY_ENTRY[name]
    return {**entry, "files": [clip]} if "files" in entry else entry


def test_there_is_a_test_entry_for_each_augmentation() -> None:
    assert list(EVERY_ENTRY) == [item.name for item in fields(AugmentConfig)]


@pytest.mark.parametrize("name", EVERY_ENTRY)
def test_off_is_identity(name: str, clip: str) -> None:
    dialogue = talk(audio=False)
    assert augmentations({})(dialogue, 0) is dialogue
    assert augmentations({name: {**entry_of(name, clip), "prob": 0}})(dialogue, 0) is dialogue


@pytest.mark.parametrize("name", EVERY_ENTRY)
def test_a_seed_is_a_result_and_arrays_are_left_alone(name: str, clip: str) -> None:
    dialogue, augment = sounding(), augmentations({name: entry_of(name, clip)})
    first, again = augment(dialogue, 5), augment(dialogue, 5)
    assert first is not dialogue
    assert_same(first, again)
    assert_same(dialogue, sounding())
    if name not in ("role_swap", "telephony", "rir"):  # these have nothing to draw, or one file to draw from
        assert any(not np.array_equal(first.source_S, augment(dialogue, seed).source_S) for seed in range(6, 9))


def test_augmentations_draw_apart(clip: str) -> None:
    dialogue = sounding(turns=TURNS[:1])  # no turn to interrupt
    noise = {"noise": {"files": [clip], "prob": 0.5}}
    alone, beside = augmentations(noise), augmentations({"early_interruption": {}, "telephony": {"prob": 0}, **noise})
    heard = [alone(dialogue, seed) for seed in range(20)]
    assert 4 < sum(item is not dialogue for item in heard) < 16
    for seed, item in enumerate(heard):
        assert_same(item, beside(dialogue, seed))


def interrupted(seed: int, **overrides: Any) -> tuple[Dialogue, int, int]:
    """An interruption of the agent's first turn: the result, the frame of the barge-in, the frames taken out."""
    changed = augmentations({"early_interruption": overrides})(talk(), seed)
    barge_in = round(changed.turns[2].start_s / FRAME_S)
    return changed, barge_in, 45 - barge_in


@pytest.mark.parametrize("seed", range(5))
def test_early_interruption_is_exact_in_both_channels_codes_and_turns(seed: int) -> None:
    changed, barge_in, num_removed = interrupted(seed, overlap_frames=3, min_spoken_frames=4)
    assert barge_in >= 20 + 4
    assert barge_in + 3 < 40
    frames = list(range(1, NUM_FRAMES + 1))
    stop, resume = barge_in + 3, 45 + 3
    agents = frames[:stop] + frames[resume:]
    assert changed.target_R is not None
    assert changed.codes_TK is not None
    assert marks_of(changed.source_S, SOURCE_HOP) == frames[:barge_in] + frames[45:]
    assert marks_of(changed.target_R, TARGET_HOP) == agents
    assert changed.codes_TK.tolist() == [[frame, frame] for frame in agents]
    assert changed.grid.num_frames == len(agents) == NUM_FRAMES - num_removed
    assert changed.duration_s == pytest.approx(len(agents) * FRAME_S)
    user, agent, barging, last = changed.turns
    assert user == TURNS[0]
    assert changed.grid.frame_at(agent.start_s) == 20
    assert changed.grid.frame_at(agent.end_s) == stop
    assert (barging.text, barging.duration_s) == ("thank you", 0.4)
    assert changed.grid.frame_at(last.start_s) == 54 - num_removed


@pytest.mark.parametrize("name", ["early_interruption", "random_silence"])
@pytest.mark.parametrize("audio", [True, False])
def test_frames_move_alike_with_audio_or_codes_alone(name: str, audio: bool) -> None:
    augment = augmentations({name: {}})
    both, one = augment(talk(), 1), augment(talk(audio=audio, codes=not audio), 1)
    assert_same(one, replace(both, codes_TK=None) if audio else replace(both, target_R=None))


@pytest.mark.parametrize("seed", range(5))
def test_words_stay_in_proportion_to_the_time_kept(seed: int) -> None:
    changed, barge_in, _ = interrupted(seed, overlap_frames=2)
    words = TURNS[1].text.split()  # ten words in 20 frames: one in two frames
    assert changed.turns[1].text.split() == words[: (barge_in + 2 - 20) // 2]
    assert changed.turns[1].value is None  # "ten" is said no more


def test_one_word_stays_at_least() -> None:
    turns = (Turn("agent", 0.0, 1.6, "certainly not"), Turn("user", 1.6, 0.8, "why"))  # ten frames a word
    augment = augmentations({"early_interruption": {"overlap_frames": 2, "min_spoken_frames": 1}})
    changed = [augment(talk(turns=turns), seed).turns for seed in range(20)]
    assert {agent.text for agent, _ in changed} == {"certainly"}
    assert min(round(user.start_s / FRAME_S) for _, user in changed) == 8


def test_text_without_spaces_is_cut_between_characters() -> None:
    turns = (Turn("agent", 0.0, 1.6, "一二三四五六七八九十"), Turn("user", 1.6, 0.8, "谢谢"))
    changed = augmentations({"early_interruption": {"overlap_frames": 0}})(talk(turns=turns), 0)
    num_kept = round(changed.turns[1].start_s / FRAME_S) // 2
    assert 0 < num_kept < 10
    assert changed.turns[0].text == "一二三四五六七八九十"[:num_kept]


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ((TURNS[0], TURNS[1]), "no user turn follows"),
        ((TURNS[1], Turn("user", 3.0, 0.4, "wait")), "the user interrupts already"),
        ((TURNS[1], Turn("agent", 3.28, 0.24, "eleven"), TURNS[2]), "the agent goes on before the user"),
        ((TURNS[1], TURNS[2], Turn("agent", 3.68, 0.4, "hm")), "the agent's next turn starts within the overlap"),
        ((Turn("agent", 1.6, 0.64, "yes"), TURNS[2]), "the turn is too short"),
    ],
)
def test_a_turn_that_cant_be_interrupted_is_left_alone(turns: tuple[Turn, ...], why: str) -> None:
    dialogue = talk(turns=turns)
    overrides = {"overlap_frames": 3, "min_spoken_frames": 5}
    assert all(augmentations({"early_interruption": overrides})(dialogue, seed) is dialogue for seed in range(5)), why


def test_the_user_isnt_cut_where_it_talks_into_the_agents_turn() -> None:
    turns = (Turn("user", 1.2, 0.96, "long question"), TURNS[1], TURNS[2])  # until frame 27
    for seed in range(8):
        changed = augmentations({"early_interruption": {"min_spoken_frames": 1}})(talk(turns=turns), seed)
        assert 27 <= round(changed.turns[2].start_s / FRAME_S) < 40


@given(seed=st.integers(0, 1000))
def test_random_silence_is_exact_in_both_channels_codes_and_turns(seed: int) -> None:
    changed = augmentations({"random_silence": {"num_frames_min": 3, "num_frames_max": 5}})(talk(), seed)
    assert changed.target_R is not None
    assert changed.codes_TK is not None
    marks = marks_of(changed.source_S, SOURCE_HOP)
    assert marks_of(changed.target_R, TARGET_HOP) == marks
    pause = marks.index(0)
    num_added = marks.count(0)
    assert 3 <= num_added <= 5
    assert marks == [*range(1, pause + 1), *[0] * num_added, *range(pause + 1, NUM_FRAMES + 1)]
    assert changed.codes_TK.tolist() == [[mark, mark] if mark else SILENCE_K.tolist() for mark in marks]
    assert changed.grid.num_frames == len(marks)
    assert changed.duration_s == pytest.approx(len(marks) * FRAME_S)
    assert not any(start < pause < end for start, end in ((5, 15), (20, 40), (45, 50), (54, 58)))
    for before, after in zip(TURNS, changed.turns, strict=True):
        num_moved = num_added if before.start_s > pause * FRAME_S - 1e-6 else 0
        assert changed.grid.frame_at(after.start_s) == changed.grid.frame_at(before.start_s) + num_moved
        assert after.duration_s == before.duration_s


def test_random_silence_finds_every_gap() -> None:
    augment = augmentations({"random_silence": {}})
    pauses = {marks_of(augment(talk(), seed).source_S, SOURCE_HOP).index(0) for seed in range(300)}
    assert pauses == {*range(6), *range(15, 21), *range(40, 46), *range(50, 55), *range(58, 61)}


def test_no_silence_where_somebody_speaks_all_the_time() -> None:
    dialogue = talk(turns=(Turn("user", -0.1, 3.0, "a"), Turn("agent", 2.0, 3.0, "b")))
    assert augmentations({"random_silence": {}})(dialogue, 0) is dialogue


def test_silence_needs_the_codes_of_silence_where_codes_are_stored() -> None:
    with pytest.raises(DataError, match=r"augment.random_silence needs the codec's codes of a silent frame.*cut talk"):
        augmentations({"random_silence": {"prob": 0.01}}, silence_codes_K=None)(talk(), 0)
    with pytest.raises(DataError, match=r"silence_codes_K has shape \[3\], but cut talk has codes of 2 codebooks"):
        augmentations({"random_silence": {}}, silence_codes_K=np.zeros(3, dtype=np.int64))(talk(), 0)
    assert augmentations({"random_silence": {}}, silence_codes_K=None)(talk(codes=False), 0).duration_s > 4.8


def pulses(times_s: list[float], rate_hz: int) -> FloatArray:
    audio_S = np.zeros(round(NUM_FRAMES * FRAME_S * rate_hz), dtype=np.float32)
    audio_S[[round(time_s * rate_hz) for time_s in times_s]] = 1
    return audio_S


@pytest.mark.parametrize("factor", [0.9, 1.07, 1.25])
def test_defect_5_speed_changes_both_channels_and_the_turns(factor: float) -> None:
    turns = (Turn("user", 0.8, 0.4, "a"), Turn("agent", 3.2, 0.8, "b"))
    dialogue = talk(
        turns=turns,
        source_S=pulses([3.2], SOURCE_RATE_HZ),
        target_R=pulses([3.2], TARGET_RATE_HZ),
    )
    changed = augmentations({"speed": {"factor_min": factor, "factor_max": factor}})(dialogue, 0)
    assert changed.target_R is not None
    assert changed.duration_s == pytest.approx(4.8 / factor, abs=1e-4)
    assert len(changed.source_S) == round(changed.duration_s * SOURCE_RATE_HZ)
    assert len(changed.target_R) == round(changed.duration_s * TARGET_RATE_HZ)
    assert peak_s(changed.source_S, SOURCE_RATE_HZ) == pytest.approx(3.2 / factor, abs=1 / SOURCE_RATE_HZ)
    assert peak_s(changed.target_R, TARGET_RATE_HZ) == pytest.approx(3.2 / factor, abs=1 / TARGET_RATE_HZ)
    assert [turn.start_s for turn in changed.turns] == pytest.approx([0.8 / factor, 3.2 / factor])
    assert [turn.duration_s for turn in changed.turns] == pytest.approx([0.4 / factor, 0.8 / factor])
    assert changed.grid == FrameGrid.of(changed.duration_s, FRAME_S, SOURCE_RATE_HZ)
    assert changed.codes_TK is None


def with_times(dialogue: Dialogue) -> Dialogue:
    """The user's first turn has times of its words."""
    words = (TimedWords("what is two", 0.08, 0.24), TimedWords("and two", 0.48, 0.32))
    return replace(dialogue, turns=(dialogue.turns[0]._replace(words=words), *dialogue.turns[1:]))


def test_words_times_go_with_their_turn() -> None:
    told = with_times(sounding())
    (before, *_) = told.turns
    (faster, *_) = augmentations({"speed": {"factor_min": 1.25, "factor_max": 1.25}})(told, 0).turns
    assert [words.text for words in faster.words] == ["what is two", "and two"]
    assert [words.start_s for words in faster.words] == pytest.approx([0.064, 0.384])
    assert [words.duration_s for words in faster.words] == pytest.approx([0.192, 0.256])
    for seed in range(3):  # times are from the turn's start: where it moves, they move
        (moved, *_) = augmentations({"random_silence": {}})(told, seed).turns
        assert moved.words == before.words
    swapped = augmentations({"role_swap": {}})(told, 0)
    assert (swapped.turns[0].role, swapped.turns[0].words) == ("agent", before.words)
    cut_short = with_times(replace(told, turns=(TURNS[1], TURNS[2])))
    cut_off = augmentations({"early_interruption": {}})(cut_short, 0).turns[0]
    kept = " ".join(words.text for words in cut_off.words).split()
    assert kept == ["what", "is", "two", "and", "two"][: len(cut_off.text.split())]


def test_speed_one_keeps_the_codes() -> None:
    dialogue = talk()
    assert augmentations({"speed": {"factor_min": 1.0, "factor_max": 1.0}})(dialogue, 0) is dialogue


@pytest.mark.parametrize("name", ["speed", "role_swap", "volume"])
def test_what_codes_cant_follow_needs_the_audio(name: str) -> None:
    augment = augmentations({name: {"prob": 0.001}})
    remedy = r"cut talk comes as stored codes alone: set data.train_ds.load_target_audio: true"
    with pytest.raises(DataError, match=rf"data.train_ds.augment.{name} changes the agent's audio, but {remedy}"):
        augment(talk(audio=False), 0)


@pytest.mark.parametrize("name", ["speed", "role_swap", "volume"])
def test_codes_that_no_longer_fit_the_audio_are_left_out(name: str) -> None:
    extra = {"factor_max": 0.9} if name == "speed" else {}
    assert augmentations({name: extra})(talk(), 0).codes_TK is None


def test_role_swap_swaps_channels_and_roles() -> None:
    dialogue = talk(source_S=pulses([1.0], SOURCE_RATE_HZ), target_R=pulses([2.0], TARGET_RATE_HZ))
    changed = augmentations({"role_swap": {}})(dialogue, 0)
    assert changed.target_R is not None
    assert (len(changed.source_S), len(changed.target_R)) == (NUM_FRAMES * SOURCE_HOP, NUM_FRAMES * TARGET_HOP)
    assert peak_s(changed.source_S, SOURCE_RATE_HZ) == pytest.approx(2.0, abs=1 / SOURCE_RATE_HZ)
    assert peak_s(changed.target_R, TARGET_RATE_HZ) == pytest.approx(1.0, abs=1 / TARGET_RATE_HZ)
    assert [turn.role for turn in changed.turns] == ["agent", "user", "agent", "user"]
    assert [turn[1:] for turn in changed.turns] == [turn[1:] for turn in TURNS]


def test_volume_gives_each_channel_its_gain() -> None:
    gains = {
        "user_gain_db_min": -20,
        "user_gain_db_max": -20,
        "agent_gain_db_min": 6.0206,
        "agent_gain_db_max": 6.0206,
    }
    dialogue = sounding()
    changed = augmentations({"volume": gains})(dialogue, 0)
    assert dialogue.target_R is not None
    assert changed.target_R is not None
    np.testing.assert_allclose(changed.source_S, dialogue.source_S * 0.1, rtol=1e-5)
    np.testing.assert_allclose(changed.target_R, dialogue.target_R * 2, rtol=1e-5)
    assert changed.source_S.dtype == changed.target_R.dtype == np.float32


def test_volume_of_the_user_alone_keeps_the_codes() -> None:
    dialogue = talk(audio=False)
    changed = augmentations({"volume": {"agent_gain_db_min": 0, "agent_gain_db_max": 0}})(dialogue, 3)
    assert changed.codes_TK is dialogue.codes_TK
    assert not np.array_equal(changed.source_S, dialogue.source_S)


@pytest.mark.parametrize("name", ["rir", "noise", "telephony", "codec"])
def test_the_agent_and_the_turns_stay_as_they_are(name: str, clip: str) -> None:
    dialogue = talk(source_S=sounding().source_S)
    changed = augmentations({name: entry_of(name, clip)})(dialogue, 0)
    assert not np.array_equal(changed.source_S, dialogue.source_S)
    assert changed.source_S.shape == dialogue.source_S.shape
    assert changed.source_S.dtype == np.float32
    assert_same(replace(changed, source_S=dialogue.source_S), dialogue)


def test_defect_4_noise_keeps_the_target_audio(clip: str) -> None:
    dialogue = sounding()
    changed = augmentations({"noise": {"files": [clip]}})(dialogue, 0)
    assert changed.target_R is dialogue.target_R


@pytest.mark.parametrize("num_samples", [4000, SOURCE_RATE_HZ * 10])
@pytest.mark.parametrize("snr_db", [-5.0, 20.0])
def test_snr_is_what_was_asked(tmp_path: Path, num_samples: int, snr_db: float) -> None:
    files = write_clip(tmp_path / "noise.wav", np.random.default_rng(2).normal(0, 0.3, num_samples))
    source_S = sounding().source_S.copy()
    source_S[50 * SOURCE_HOP :] = 0  # no turn of the user's: it doesn't count as speech
    dialogue = sounding(source_S=source_S)
    augment = augmentations({"noise": {"files": [files], "snr_db_min": snr_db, "snr_db_max": snr_db}})
    noise_S = augment(dialogue, 4).source_S - source_S
    speech = np.concatenate([source_S[5 * SOURCE_HOP : 15 * SOURCE_HOP], source_S[45 * SOURCE_HOP : 50 * SOURCE_HOP]])
    assert 20 * np.log10(rms(speech) / rms(noise_S)) == pytest.approx(snr_db, abs=0.01)
    assert rms(noise_S[-SOURCE_HOP:]) > 0.3 * rms(noise_S)


def test_short_noise_is_looped_from_a_random_place(tmp_path: Path) -> None:
    files = write_clip(tmp_path / "noise.wav", np.arange(1, 1001) / 1000)
    augment = augmentations({"noise": {"files": [files], "snr_db_min": 0, "snr_db_max": 0}})
    added = [augment(sounding(), seed).source_S - sounding().source_S for seed in range(2)]
    for noise_S in added:
        np.testing.assert_allclose(noise_S[:1000], noise_S[1000:2000], atol=1e-6)
    assert np.argmax(added[0][:1000]) != np.argmax(added[1][:1000])


def test_noise_of_another_rate_keeps_its_pitch(tmp_path: Path) -> None:
    files = write_clip(tmp_path / "tone.wav", np.sin(2 * np.pi * 1000 * np.arange(44100 * 6) / 44100), 44100)
    noise_S = augmentations({"noise": {"files": [files]}})(sounding(), 0).source_S - sounding().source_S
    assert np.argmax(np.abs(np.fft.rfft(noise_S))) * SOURCE_RATE_HZ / len(noise_S) == pytest.approx(1000, abs=1)


def test_no_noise_where_the_user_never_speaks(clip: str) -> None:
    dialogue = sounding(turns=TURNS[1:2])
    assert augmentations({"noise": {"files": [clip]}})(dialogue, 0) is dialogue


def test_rir_takes_the_direct_path_delay_out_and_keeps_length_and_energy(tmp_path: Path) -> None:
    response = np.zeros(3000)
    response[[400, 1200]] = [0.5, -0.25]  # the direct path, and an echo 50 ms later
    dialogue = talk(source_S=pulses([2.0], SOURCE_RATE_HZ))
    changed = augmentations({"rir": {"files": [write_clip(tmp_path / "room.wav", response)]}})(dialogue, 0)
    heard_S = changed.source_S
    assert np.flatnonzero(np.abs(heard_S) > 1e-3).tolist() == [32000, 32800]
    assert heard_S[32800] / heard_S[32000] == pytest.approx(-0.5, abs=1e-4)
    assert np.sum(heard_S**2) == pytest.approx(1, abs=1e-4)


@given(num_dry=st.integers(1, 300), num_response=st.integers(1, 90))
def test_pieces_are_convolved_as_the_whole_is(num_dry: int, num_response: int) -> None:
    rng = np.random.default_rng([num_dry, num_response])
    dry_S, response_R = (rng.normal(size=size).astype(np.float32) for size in (num_dry, num_response))
    found_S = convolved(torch.from_numpy(dry_S), torch.from_numpy(response_R))
    np.testing.assert_allclose(found_S.numpy(), np.convolve(dry_S, response_R), atol=1e-4)


def test_a_silent_response_is_refused(tmp_path: Path) -> None:
    files = [write_clip(tmp_path / "room.wav", np.zeros(100))]
    with pytest.raises(UnreadableCutError, match=r"augment.rir.files: the room impulse response .*room.wav is silent"):
        augmentations({"rir": {"files": files}})(sounding(), 0)


def test_telephony_limits_the_band_and_adds_no_delay() -> None:
    dialogue = sounding()
    heard_S = augmentations({"telephony": {}})(dialogue, 0).source_S
    assert delay_of(heard_S, dialogue.source_S) == 0
    power = np.abs(np.fft.rfft(heard_S)) ** 2
    hz = np.fft.rfftfreq(len(heard_S), 1 / SOURCE_RATE_HZ)
    inside, below, above = (
        float(np.mean(power[(hz >= low) & (hz < high)])) for low, high in ((400, 3300), (0, 200), (4200, 8000))
    )
    assert below < 0.01 * inside  # quantization noise is left
    assert above < 1e-3 * inside


def test_telephony_quantizes_to_255_levels() -> None:
    source_S = np.linspace(-1, 1, NUM_FRAMES * 640, dtype=np.float32)
    dialogue = talk(codes=False, source_S=source_S, source_rate_hz=8000)
    open_band = augmentations({"telephony": {"band_low_hz": 0, "band_high_hz": 4000}})
    assert 100 < len(np.unique(open_band(dialogue, 0).source_S)) <= 255


@pytest.mark.parametrize("name", ["mp3", "opus", "vorbis"])
def test_codecs_add_no_delay(name: str) -> None:
    smooth = np.convolve(sounding().source_S, np.ones(4) / 4, "same").astype(np.float32)
    entry = {"codecs": [name], "compression_min": 0.3, "compression_max": 0.3}
    heard_S = augmentations({"codec": entry})(sounding(source_S=smooth), 0).source_S
    assert delay_of(heard_S, smooth) == 0
    error = rms(heard_S - smooth) / rms(smooth)
    assert 0.01 < error < 0.8


def test_ten_minutes_of_vorbis_dont_end_the_process() -> None:
    # one write of them overflows libvorbis' stack
    audio_S = np.zeros(600 * SOURCE_RATE_HZ, dtype=np.float32)
    dialogue = talk(duration_s=600.0, source_S=audio_S)
    assert len(augmentations({"codec": {"codecs": ["vorbis"]}})(dialogue, 0).source_S) == len(audio_S)


def test_a_codec_that_cant_have_the_rate_is_refused() -> None:
    augment = augmentations({"codec": {"prob": 0.01, "codecs": ["vorbis", "opus"]}})
    with pytest.raises(DataError, match=r"augment.codec.codecs: opus can't have data.source_sample_rate 22050, only"):
        augment(talk(source_rate_hz=22050), 0)


def echoes(files: Any) -> set[float]:
    """The echoes that come up in 30 draws, which tell the files apart."""
    augment = augmentations({"rir": {"files": files}})
    impulse = talk(source_S=pulses([1.0], SOURCE_RATE_HZ))
    found = set()
    for seed in range(30):
        heard_S = augment(impulse, seed).source_S
        found.add(round(float(heard_S[16001] / heard_S[16000]), 3))
    return found


def test_folders_lists_and_manifests_name_files(tmp_path: Path) -> None:
    (tmp_path / "rooms" / "deep").mkdir(parents=True)
    first = write_clip(tmp_path / "rooms" / "a.wav", [1, 0.5])
    second = str(tmp_path / "rooms" / "deep" / "b.flac")
    soundfile.write(second, np.array([1 - 2**-15, 0.25]), SOURCE_RATE_HZ)
    (tmp_path / "rooms" / "readme.txt").write_text("not audio")
    recordings = RecordingSet.from_recordings([Recording.from_file(first)])
    recordings.to_file(tmp_path / "recordings.jsonl.gz")
    CutSet([Recording.from_file(second).to_cut()]).to_file(tmp_path / "cuts.jsonl.gz")
    assert echoes(str(tmp_path / "rooms")) == {0.5, 0.25}
    assert echoes([first, second]) == {0.5, 0.25}
    assert echoes([second]) == {0.25}
    assert echoes(str(tmp_path / "recordings.jsonl.gz")) == {0.5}
    assert echoes(str(tmp_path / "cuts.jsonl.gz")) == {0.25}


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    with pytest.raises(UnreadableCutError, match=r"augment.noise.files: can't read .*broken.wav"):
        augmentations({"noise": {"files": [str(broken)]}})(sounding(), 0)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        *[({name: {"prob": 1.5}}, rf"{name}\.prob is 1.5, but must be from 0 to 1") for name in EVERY_ENTRY],
        ({"speed": {"prob": float("nan")}}, r"speed\.prob is nan"),
        ({"early_interruption": {"overlap_frames": -1}}, r"early_interruption\.overlap_frames is -1, .* 0 or more"),
        ({"early_interruption": {"min_spoken_frames": 0}}, r"early_interruption\.min_spoken_frames is 0, .* 1 or more"),
        ({"random_silence": {"num_frames_min": 0}}, r"random_silence\.num_frames_min is 0, .* 1 or more"),
        ({"random_silence": {"num_frames_max": 2}}, r"num_frames_min is 3, but must not be above num_frames_max"),
        ({"speed": {"factor_min": 0.1}}, r"speed\.factor_min is 0.1, but must be from 0.5 to 2"),
        ({"speed": {"factor_max": 3}}, r"speed\.factor_max is 3"),
        ({"volume": {"user_gain_db_max": float("inf")}}, r"volume\.user_gain_db_max is inf, but must be a number"),
        ({"volume": {"agent_gain_db_min": 9}}, r"volume\.agent_gain_db_min is 9.0, .* above agent_gain_db_max"),
        ({"rir": {}}, r"rir\.files is None, but must be a folder"),
        ({"noise": {"files": []}}, r"noise\.files is \[\], but must be a folder"),
        ({"noise": {"files": "/no/such"}}, r"noise\.files: /no/such is no folder"),
        ({"noise": {"files": ["/no/such.wav"]}}, r"noise\.files: there is no file /no/such.wav"),
        ({"noise": {"files": "/no/such.jsonl.gz"}}, r"noise\.files: can't read /no/such.jsonl.gz"),
        ({"noise": {"files": ["/dev/null"], "snr_db_min": 40}}, r"noise\.snr_db_min is 40.0, .* snr_db_max"),
        ({"telephony": {"band_high_hz": 5000}}, r"telephony\.band_high_hz is 5000.0, but must be from 0 to 4000"),
        ({"telephony": {"band_low_hz": 3400}}, r"telephony\.band_low_hz is 3400.0, but must be below band_high_hz"),
        ({"codec": {"codecs": []}}, r"codec\.codecs is empty"),
        ({"codec": {"codecs": ["opsu"]}}, r"codec\.codecs: unknown 'opsu': did you mean 'opus'"),
        ({"codec": {"compression_max": 1}}, r"codec\.compression_max is 1.0, but must be from 0 to 0.99"),
    ],
)
def test_config_errors_name_the_key(plain: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.train_ds\.augment\.(\w+\.)?{message}"):
        augmentations(plain)


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"noise.files: {tmp_path} has no .wav or .flac file"):
        augmentations({"noise": {"files": str(tmp_path)}})


@given(frame=st.integers(0, 100_000))
def test_frames_start_at_whole_samples_at_the_usual_rates(frame: int) -> None:
    assert frame_start(frame, FRAME_S, SOURCE_RATE_HZ) == frame * SOURCE_HOP
    assert frame_start(frame, FRAME_S, TARGET_RATE_HZ) == frame * TARGET_HOP
