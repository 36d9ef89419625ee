import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s2s_eval.samples import SampleAudio, SampleKeeper, kept_ids, wav_paths, write_audio, write_scores
from s2s_eval.turn_taking import BargeIn, Response
from tests.s2s_eval.builders import RATE, scored, tone

CODEC_RATE = 22050


def audio(seconds: float = 0.1) -> SampleAudio:
    return SampleAudio(tone(seconds), RATE, tone(seconds, CODEC_RATE), tone(seconds, 24000), 24000, CODEC_RATE)


def test_the_same_dialogues_are_kept_whatever_the_order() -> None:
    ids = [f"cut{i}" for i in range(20)]
    keepers = [SampleKeeper(3), SampleKeeper(3)]
    for keeper, order in zip(keepers, [ids, ids[::-1]], strict=True):
        for cut_id in order:
            keeper.add("d", cut_id, audio())
    for keeper in keepers:
        assert {cut_id for cut_id in ids if keeper.get("d", cut_id)} == set(kept_ids(ids, 3))
    assert len(kept_ids(ids, 3)) == 3


def test_wavs_have_the_rate_of_the_generated_audio_user_left_agent_right(tmp_path: Path) -> None:
    dialogue = scored("seen/set", "cut/1", [("a", "b")])
    keeper = SampleKeeper(8)
    loud = replace(audio(1.0), generated=tone(0.5, CODEC_RATE, 300, level=0.6))
    keeper.add(dialogue.dataset, dialogue.cut_id, loud)
    write_audio(tmp_path, [dialogue], keeper, 8)
    wavs = wav_paths(tmp_path, dialogue.dataset, dialogue.cut_id)
    stereo, rate = soundfile.read(wavs.stereo)
    assert (rate, stereo.shape) == (CODEC_RATE, (CODEC_RATE, 2))
    assert np.abs(stereo).max(axis=0) == pytest.approx([0.3, 0.6], abs=0.02)
    assert not stereo[CODEC_RATE // 2 :, 1].any()
    assert soundfile.info(wavs.reference).samplerate == CODEC_RATE


def test_a_dialogues_line_holds_all_that_is_known_of_it(tmp_path: Path) -> None:
    answers = [Response(1.0, 0.25, 0.3), Response(3.0, None, 0.3), Response(5.0, 0.75, 0.3)]
    dialogue = replace(
        scored("seen", "cut/1", [("good day", "good day"), ("", "so long")]),
        generated_speech=[(1.25, 2.0)],
        responses=answers,
        barge_ins=[BargeIn(6.0, 6.5, "yield", success=True)],
        quality=3.5,
    )
    write_scores(tmp_path, 7, [dialogue], {"val_asr_bleu": 50.0}, 8, {"asr": "x"})
    (line,) = (tmp_path / "seen" / "dialogues.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert set(asdict(dialogue)) <= set(record)
    assert record["turns"][0] == {"role": "agent", "start_s": 0.0, "end_s": 1.0, "text": "good day", "value": None}
    assert record["generated_speech"] == [[1.25, 2.0]]
    assert record["barge_ins"] == [{"start_s": 6.0, "stop_s": 6.5, "kind": "yield", "success": True}]
    assert record["latency_s"] == 0.5
    assert record["asr_wer"] == pytest.approx(50)
    assert record["speaker_similarity"] is None
    assert (tmp_path / "seen" / record["wav"]) == wav_paths(tmp_path, "seen", "cut/1").stereo


def test_two_ids_never_share_a_file(tmp_path: Path) -> None:
    ids = [
        "a/b",
        "a_b",
        "a:b",
        "ä",
        "a b",
        "a",
        "a.reference",
        "",
        ".",
        "..",
        "\ud800",
        "x" * 300,
        "x" * 301,
        "ä" * 200,
    ]
    paths = [path for cut_id in ids for path in wav_paths(tmp_path, "d", cut_id)]
    assert len(set(paths)) == 2 * len(ids)
    assert {path.parent for path in paths} == {tmp_path / "d"}
    keeper = SampleKeeper(len(ids))
    for cut_id in ids:
        keeper.add("d", cut_id, audio())
    write_audio(tmp_path, [scored("d", cut_id, [("a", "b")]) for cut_id in ids], keeper, len(ids))
    assert len(list((tmp_path / "d").iterdir())) == 2 * len(ids)


@pytest.mark.parametrize("dataset", ["..", ".", "", "../../x", "/x", "scores.json", "report.html"])
def test_a_data_set_stays_in_the_validations_folder(dataset: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "samples" / "step_1"
    write_scores(folder, 1, [scored(dataset, "cut", [("a", "b")])], {"val_loss": 2.0}, 8, {})
    [lines] = tmp_path.rglob("dialogues.jsonl")
    assert lines.parent.parent == folder
    assert (folder / "scores.json").is_file()


def test_words_are_counted_in_the_language_of_the_texts(tmp_path: Path) -> None:
    dialogue = scored("d", "cut", [("今天天气好", "今天天气坏")])
    found = {}
    for language in ("en", "zh"):
        write_scores(tmp_path / language, 1, [dialogue], {}, 8, {"language": language})
        found[language] = json.loads((tmp_path / language / "d" / "dialogues.jsonl").read_text())["asr_wer"]
    assert found == {"en": 100.0, "zh": pytest.approx(20)}


def test_what_is_not_finite_is_null_in_the_files(tmp_path: Path) -> None:
    dialogue = replace(scored("d", "cut", [("a", "b")]), quality=math.nan)
    write_scores(tmp_path, 1, [dialogue], {"val_token_perplexity": math.inf, "val_loss": 2.0}, 8, {})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    scores = json.loads((tmp_path / "scores.json").read_text(), parse_constant=refuse)
    assert scores["metrics"] == {"val_token_perplexity": None, "val_loss": 2.0}
    assert json.loads((tmp_path / "d" / "dialogues.jsonl").read_text(), parse_constant=refuse)["quality"] is None
