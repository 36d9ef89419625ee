import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch

from s2s_eval.cli import main
from s2s_eval.config import ScoringConfig
from s2s_eval.folders.batches import batches
from s2s_eval.folders.pairs import find_pairs
from s2s_eval.scoring import ValidationScoring
from tests.s2s_eval.builders import RATE, WHISPER, EchoModel, SpokenDialogue, spoken_dialogues, tone


def write_hypotheses(folder: Path, dialogues: list[SpokenDialogue]) -> Path:
    """Write each dialogue as validation does: the user left, the agent right."""
    folder.mkdir(parents=True)
    for dialogue in dialogues:
        soundfile.write(
            folder / f"{dialogue.cut_id}.flac",
            np.stack([dialogue.user, dialogue.agent], axis=1),
            RATE,
            subtype="PCM_16",
        )
    return folder


def write_references(folder: Path, dialogues: list[SpokenDialogue], *, speech: bool) -> Path:
    """Write each dialogue's turns and, if wanted, the reference agent's speech."""
    folder.mkdir(parents=True)
    for dialogue in dialogues:
        turns = [
            {"role": turn.role, "start": turn.start_s, "duration": turn.duration_s, "text": turn.text}
            | ({"value": turn.value} if turn.value else {})
            for turn in dialogue.turns
        ]
        (folder / f"{dialogue.cut_id}.json").write_text(json.dumps({"turns": turns}))
        if speech:
            soundfile.write(folder / f"{dialogue.cut_id}.wav", dialogue.agent, RATE, subtype="PCM_16")
    return folder


def write_own_turns(folder: Path, dialogues: list[SpokenDialogue]) -> None:
    """Write what the model of :func:`perfect_output` writes."""
    for dialogue in dialogues:
        turns = [turn._asdict() for turn in dialogue.turns if turn.role == "agent"]
        (folder / f"{dialogue.cut_id}.hyp.json").write_text(json.dumps({"turns": turns}))


def score(*args: object) -> int:
    return main(["score", *map(str, args)])


def failure(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Return the one line that a user gets with exit code 2."""
    assert score(*args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def written_metrics(out: Path, step: int = 0) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((out / "samples" / f"step_{step}" / "scores.json").read_text())["metrics"]
    return metrics


def tones(folder: Path, *names: str, rate: int = RATE) -> Path:
    """Write a tone of a second for each name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, tone(1.0, rate), rate)
    return folder


def texts(folder: Path, **by_id: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in by_id.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


class TestRealSpeech:
    @pytest.fixture(scope="class")
    def validated(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
        """Validate with real Whisper; return the run and the metrics logged."""
        run = tmp_path_factory.mktemp("run")
        scoring = ValidationScoring(ScoringConfig(WHISPER, target_sample_rate=RATE), run)
        trainer = pl.Trainer(
            accelerator="cpu", callbacks=[scoring], logger=False, enable_progress_bar=False, default_root_dir=run
        )
        trainer.validate(EchoModel([{"real": spoken_dialogues()}]), verbose=False)
        return run, {name: float(value) for name, value in trainer.callback_metrics.items()}

    def test_folders_get_the_figures_of_validation(
        self, validated: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hyp = write_hypotheses(tmp_path / "real", spoken_dialogues())
        write_own_turns(hyp, spoken_dialogues())
        ref = write_references(tmp_path / "ref", spoken_dialogues(), speech=True)
        out = tmp_path / "out"
        assert score(hyp, ref, "--asr", WHISPER, "--out", out) == 0
        metrics = written_metrics(out)
        for name, value in metrics.items():
            assert np.float32(value) == np.float32(validated[1][name]), name
        assert metrics.keys() == {
            name for name in validated[1] if name.startswith(("val_", "ref_", "ceiling_", "shuffled_"))
        }
        printed = capsys.readouterr().out
        assert "val_asr_bleu_real" not in printed
        assert [line.split() for line in printed.splitlines() if line.startswith("val_asr_bleu ")] == [
            ["val_asr_bleu", f"{metrics['val_asr_bleu']:.2f}"]
        ]
        assert f"asr: {WHISPER}" in printed
        assert "version:" in printed
        assert (out / "report.html").stat().st_size > 50_000
        assert len((out / "samples/step_0/real/dialogues.jsonl").read_text().splitlines()) == 2

    def test_a_validation_is_scored_anew_from_its_samples(
        self, validated: tuple[Path, dict[str, float]], tmp_path: Path
    ) -> None:
        run, metrics = validated
        samples = run / "samples" / "step_0" / "real"
        assert score(samples, samples / "dialogues.jsonl", "--asr", WHISPER, "--out", tmp_path / "out") == 0
        again = written_metrics(tmp_path / "out")
        assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-4)
        assert {"val_txt_bleu_real", "val_answer_accuracy_real"} <= again.keys()

    def test_speech_is_a_reference_too(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Mono files of another rate, in folders; the references of one file say the words of the other."""
        [france, _] = spoken_dialogues()
        question = france.user[: round(2.8 * RATE)]
        for folder, name in [("hyp", "a/one.wav"), ("ref", "a/one.flac")]:
            (tmp_path / folder / "a").mkdir(parents=True)
            soundfile.write(tmp_path / folder / name, question, RATE)
        assert score(tmp_path / "hyp", tmp_path / "ref", "--asr", WHISPER, "--out", tmp_path / "out") == 0
        assert written_metrics(tmp_path / "out")["val_asr_wer_hyp"] == 0
        [line] = (tmp_path / "out/samples/step_0/hyp/dialogues.jsonl").read_text().splitlines()
        assert "capital of france" in json.loads(line)["reference_text"].lower()
        assert "ceiling" not in capsys.readouterr().out
        assert "--asr" not in failure(capsys, tmp_path / "hyp", tmp_path / "ref", "--asr", "none")


def test_turns_give_turn_taking_without_a_recogniser(tmp_path: Path) -> None:
    """The agent (a tone) answers 0.5 s after the user, who interrupts at 4 s; it goes on until 4.6 s."""
    agent = np.zeros(6 * RATE, np.float32)
    agent[round(1.5 * RATE) : round(4.6 * RATE)] = tone(3.1)
    (tmp_path / "hyp").mkdir()
    soundfile.write(tmp_path / "hyp" / "a.wav", agent, RATE)
    turns = [
        {"role": "user", "start": 0, "end": 1},
        {"role": "agent", "start": 1.3, "end": 4.2, "text": "one"},
        {"role": "user", "start": 4, "duration": 1.5},
    ]
    (tmp_path / "ref").mkdir()
    (tmp_path / "ref" / "a.json").write_text(json.dumps({"turns": turns}))
    options = ["--asr", "none", "--barge-in-stop", "1.0", "--out"]
    assert score(tmp_path / "hyp", tmp_path / "ref", *options, tmp_path / "out") == 0
    metrics = written_metrics(tmp_path / "out")
    assert metrics["val_latency_s_median"] == pytest.approx(0.5, abs=0.02)
    assert metrics["ref_latency_s_median"] == pytest.approx(0.3)
    assert metrics["val_barge_in_success"] == 100
    assert metrics["val_barge_in_stop_s_median"] == pytest.approx(0.6, abs=0.02)
    assert (
        score(tmp_path / "hyp", tmp_path / "ref", "--asr", "none", "--barge-in-stop", 0.5, "--out", tmp_path / "b") == 0
    )
    assert written_metrics(tmp_path / "b")["val_barge_in_success"] == 0


def test_quality_of_what_is_audible(tmp_path: Path) -> None:
    """A stand-in for UTMOS: the score is the loudest sample."""

    class Loudest(torch.nn.Module):
        def forward(self, audio_BS: torch.Tensor) -> torch.Tensor:
            return audio_BS.abs().amax(dim=1)

    torch.jit.script(Loudest()).save(str(tmp_path / "loudest.pt"))
    hyp, ref = tones(tmp_path / "hyp", "a.wav"), texts(tmp_path / "ref", a="one")
    options = ["--asr", "none", "--quality", f"torchscript:{tmp_path / 'loudest.pt'}"]
    assert score(hyp, ref, *options, "--out", tmp_path / "out") == 0
    assert written_metrics(tmp_path / "out") == {
        name: pytest.approx(0.3, abs=0.01) for name in ("val_quality", "val_quality_hyp")
    }


class TestTexts:
    """Without a recogniser."""

    def test_the_models_own_text(self, tmp_path: Path) -> None:
        hyp = texts(tones(tmp_path / "hyp", "a.wav", "b.wav"), **{"a.hyp": "the cat sat on mats", "b.hyp": "six"})
        ref = texts(tmp_path / "ref", a="The cat, sat on mats.", b="seven")
        assert score(hyp, ref, "--asr", "none", "--out", tmp_path / "out") == 0
        whole = written_metrics(tmp_path / "out")["val_txt_bleu_hyp"]
        assert 50 < whole < 100

    def test_some_texts_only(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp = texts(tones(tmp_path / "hyp", "a.wav", "b.wav"), **{"a.hyp": "the cat sat on mats"})
        ref = texts(tmp_path / "ref", a="The cat sat on mats", b="seven")
        assert "1 of 2 hypotheses have no ID.hyp.txt (b)" in failure(capsys, hyp, ref, "--asr", "none")
        assert score(hyp, ref, "--asr", "none", "--allow-missing", "--out", tmp_path / "out") == 0
        assert written_metrics(tmp_path / "out")["val_txt_bleu"] == pytest.approx(100)
        assert "without the 1 that have no ID.hyp.txt (b)" in capsys.readouterr().out

    def test_right_answers_are_of_those_texts_whose_turns_are_known(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Dialogue b has no line for each of its two turns: it isn't known which answer is which."""
        hyp = texts(tones(tmp_path / "textual", "a.wav", "b.wav"), **{"a.hyp": "it is ten\nTwelve!", "b.hyp": "five"})
        ref = tmp_path / "ref"
        ref.mkdir()
        turns = [
            {"role": "agent", "start": start, "end": start + 0.4, "text": "of course", "value": value}
            for start, value in [(0.0, "nine"), (0.5, "12")]
        ]
        for name in "ab":
            (ref / f"{name}.json").write_text(json.dumps({"turns": turns}))
        assert score(hyp, ref, "--asr", "none", "--out", tmp_path / "out") == 0
        metrics = written_metrics(tmp_path / "out")
        assert metrics["val_answer_accuracy_text"] == metrics["val_answer_accuracy_text_textual"] == 50
        assert "val_answer_accuracy_textual" not in metrics
        assert "val_answer_accuracy_text: without the 1 whose ID.hyp.txt" in capsys.readouterr().out
        record = json.loads((tmp_path / "out/samples/step_0/textual/dialogues.jsonl").read_text().splitlines()[0])
        assert (record["answer_accuracy"], record["answer_accuracy_text"]) == (None, 50)
        assert [turn["value"] for turn in record["turns"]] == ["nine", "12"]

    def test_speech_without_a_recogniser_has_nothing_to_score(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hyp, ref = tones(tmp_path / "hyp", "a.wav"), texts(tmp_path / "ref", a="one")
        assert "choose a recogniser" in failure(capsys, hyp, ref, "--asr", "none")

    def test_another_language(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp = texts(tones(tmp_path / "hyp", "a.wav"), **{"a.hyp": "今天天气很好"})
        ref = texts(tmp_path / "ref", a="今天天气很好。")
        assert score(hyp, ref, "--asr", "none", "--language", "zh") == 0
        printed = capsys.readouterr().out
        assert "tok:zh" in printed
        assert ["val_txt_bleu", "100.00"] in [line.split() for line in printed.splitlines()]

    def test_texts_may_lie_beside_the_speech(self, tmp_path: Path) -> None:
        both = texts(tones(tmp_path / "both", "a.wav"), a="the cat sat down", **{"a.hyp": "the cat sat down"})
        assert score(both, both, "--asr", "none", "--out", tmp_path / "out") == 0
        assert written_metrics(tmp_path / "out")["val_txt_bleu"] == pytest.approx(100)

    def test_files_of_several_rates_and_the_agent_left(self, tmp_path: Path) -> None:
        """The channels land where the report wants them: the user left."""
        hyp = tones(tmp_path / "hyp", "mono.wav", rate=8000)
        speech = np.stack([tone(1.0, 24000), np.zeros(24000, np.float32)], axis=1)
        soundfile.write(hyp / "stereo.wav", speech, 24000)
        texts(hyp, **{"mono.hyp": "one", "stereo.hyp": "two"})
        ref = texts(tmp_path / "ref", mono="one", stereo="two")
        assert score(hyp, ref, "--asr", "none", "--agent-channel", "left", "--out", tmp_path / "out") == 0
        kept, rate = soundfile.read(tmp_path / "out/samples/step_0/hyp/stereo.wav")
        assert rate == 24000
        assert np.abs(kept).max(axis=0) == pytest.approx([0, 0.3], abs=0.01)
        assert soundfile.info(tmp_path / "out/samples/step_0/hyp/mono.wav").samplerate == 8000


def test_a_model_that_says_nothing_at_all(tmp_path: Path) -> None:
    """Its files are empty: every word is missed."""
    (tmp_path / "hyp").mkdir()
    soundfile.write(tmp_path / "hyp" / "a.wav", np.zeros(0, np.float32), RATE)
    ref = texts(tmp_path / "ref", a="the cat sat down")
    for out in (tmp_path / "text", tmp_path / "speech"):
        assert score(tmp_path / "hyp", ref, "--asr", WHISPER, "--out", out) == 0
        metrics = written_metrics(out)
        assert metrics["val_asr_wer_hyp"] == metrics["val_empty_rate_hyp"] == 100
        tones(ref, "a.wav", rate=8000)
    assert "ceiling_asr_bleu_hyp" in metrics


def test_batches_are_bounded(tmp_path: Path) -> None:
    """Memory is that of one batch, however many files there are: here 11 of 2 minutes and one longer than a batch."""
    hyp, ref = tmp_path / "hyp", tmp_path / "ref"
    hyp.mkdir()
    names = [f"d{i}" for i in range(11)]
    for name, minutes in [*((name, 2) for name in names), ("long", 11)]:
        soundfile.write(hyp / f"{name}.wav", np.zeros(minutes * 60 * 1000), 1000, subtype="PCM_U8")
    texts(ref, **dict.fromkeys([*names, "long"], "one"))
    groups = [[pair.name for pair in group] for _, group in batches(find_pairs(hyp, ref).pairs)]
    assert [len(group) for group in groups] == [5, 5, 1, 1]
    assert sorted(name for group in groups for name in group) == sorted([*names, "long"])


class TestMistakes:
    def test_folders(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ref = texts(tmp_path / "ref", a="one")
        assert f"no folder {tmp_path / 'gone'}" in failure(capsys, tmp_path / "gone", ref, "--asr", "none")
        assert "holds no speech" in failure(capsys, ref, ref, "--asr", "none")
        hyp = tones(tmp_path / "hyp", "a.wav")
        assert f"no folder {tmp_path / 'gone'}" in failure(capsys, hyp, tmp_path / "gone", "--asr", "none")
        (tmp_path / "empty").mkdir()
        assert "holds no reference" in failure(capsys, hyp, tmp_path / "empty", "--asr", "none")
        assert "is neither a folder nor" in failure(capsys, hyp, hyp / "a.wav", "--asr", "none")

    def test_ids_without_a_partner(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        names = [f"x{i}" for i in range(7)]
        hyp = tones(tmp_path / "hyp", "a.wav", *[f"{name}.wav" for name in names])
        texts(hyp, **{f"{name}.hyp": "the cat sat down" for name in ["a", *names]})
        ref = texts(tmp_path / "ref", a="the cat sat down", lost="two")
        line = failure(capsys, hyp, ref, "--asr", "none")
        assert "7 of 8 in" in line
        assert "(x0, x1, x2, x3, x4 and 2 more)" in line
        assert "1 of 2 in" in line
        assert "(lost)" in line
        assert score(hyp, ref, "--asr", "none", "--allow-missing") == 0
        printed = capsys.readouterr().out
        assert "1 dialogues" in printed
        assert "left out: 7 of 8" in printed
        assert "no id in common" in failure(
            capsys, tones(tmp_path / "other", "z.wav"), ref, "--asr", "none", "--allow-missing"
        )

    def test_files_that_are_not_what_they_should_be(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ref = texts(tmp_path / "ref", a="one")
        line = failure(capsys, tones(tmp_path / "twice", "a.wav", "a.flac"), ref, "--asr", "none")
        assert "are both 'a'" in line
        hyp = tmp_path / "hyp"
        hyp.mkdir()
        (hyp / "a.wav").write_text("no audio")
        assert f"can't read {hyp / 'a.wav'}" in failure(capsys, hyp, ref, "--asr", "none")
        soundfile.write(hyp / "a.wav", np.zeros((10, 3)), RATE)
        assert "has 3 channels" in failure(capsys, hyp, ref, "--asr", "none")
        tones(hyp, "a.wav")
        (hyp / "a.hyp.txt").write_bytes(b"\xff\xfe\x00")
        assert "a.hyp.txt isn't UTF-8" in failure(capsys, hyp, ref, "--asr", "none")
        (hyp / "a.hyp.txt").write_text("one")
        texts(ref, a=" \n")
        assert "a.txt is empty" in failure(capsys, hyp, ref, "--asr", "none")

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ('{"turns":\n [{]}', "a.json, line 2: not JSON"),
            ("[]", "a.json, line 1: list where an object was expected"),
            ("{}", "a.json: no list of turns"),
            ('{"turns": []}', "a.json has no turn"),
            ('{"turns": ["hello"]}', "a.json, turns[0] is 'hello'"),
            ('{"turns": [{"role": "bot"}]}', "turns[0]: role is 'bot': give 'user' or 'agent'"),
            ('{"turns": [{"role": "agent", "start": 0, "end": 1}]}', "turns[0]: text is None"),
            ('{"turns": [{"role": "user", "start": 0}]}', "turns[0]: give start, and duration or end"),
            ('{"turns": [{"role": "user", "start": "0", "end": 1}]}', "turns[0]: start is '0'"),
            ('{"turns": [{"role": "user", "start": 0, "duration": NaN}]}', "turns[0]: duration is nan"),
            ('{"turns": [{"role": "user", "start": 2, "end": 1}]}', "turns[0]: it ends before it starts at 2 s"),
            ('{"turns": [{"role": "agent", "start": 0, "end": 1, "text": "4", "value": 4}]}', "turns[0]: value is 4"),
            (
                '{"turns": [{"role": "agent", "start": 0, "end": 1, "text": "4", "value": " "}]}',
                "turns[0]: value is ' '",
            ),
        ],
    )
    def test_malformed_turns(self, content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp, ref = tones(tmp_path / "hyp", "a.wav"), tmp_path / "ref"
        ref.mkdir()
        (ref / "a.json").write_text(content)
        assert told in failure(capsys, hyp, ref, "--asr", "none")

    def test_malformed_records(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp, ref = tones(tmp_path / "hyp", "a.wav"), tmp_path / "dialogues.jsonl"
        good = json.dumps({"cut_id": "a", "turns": [], "reference_text": "one"})
        ref.write_text(f"{good}\n{{\n")
        assert f"{ref}, line 2: not JSON" in failure(capsys, hyp, ref, "--asr", "none")
        ref.write_text(f"{good}\n{good}\n")
        assert f"{ref}, line 2: 'a' is there twice" in failure(capsys, hyp, ref, "--asr", "none")
        ref.write_text('{"cut_id": 3}')
        assert f"{ref}, line 1: cut_id is 3" in failure(capsys, hyp, ref, "--asr", "none")

    def test_a_cut_off_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp, ref = tones(tmp_path / "hyp", "a.flac"), texts(tmp_path / "ref", a="one")
        data = (hyp / "a.flac").read_bytes()
        (hyp / "a.flac").write_bytes(data[: len(data) // 2])
        assert f"can't read {hyp / 'a.flac'}" in failure(capsys, hyp, ref, "--asr", WHISPER)

    def test_recognisers(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp, ref = tones(tmp_path / "hyp", "a.wav"), texts(tmp_path / "ref", a="one")
        assert "'klingon' isn't known" in failure(capsys, hyp, ref, "--asr", "none", "--language", "klingon")
        assert "unknown quality='mos'" in failure(capsys, hyp, ref, "--asr", "none", "--quality", "mos")
        assert "unknown ASR backend 'wisper'" in failure(capsys, hyp, ref, "--asr", "wisper:tiny")
        with pytest.raises(SystemExit) as end:
            score(hyp, ref)
        assert end.value.code == 2
        assert "--asr" in capsys.readouterr().err

    def test_scores_are_not_written_over(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp = texts(tones(tmp_path / "hyp", "a.wav"), **{"a.hyp": "the cat sat down"})
        ref, out = texts(tmp_path / "ref", a="the cat sat down"), tmp_path / "out"
        assert score(hyp, ref, "--asr", "none", "--out", out) == 0
        capsys.readouterr()
        assert "step_0 is there already" in failure(capsys, hyp, ref, "--asr", "none", "--out", out)
        assert "lies in HYP or REF" in failure(capsys, hyp, ref, "--asr", "none", "--out", hyp / "out")
        assert score(hyp, ref, "--asr", "none", "--out", out, "--step", 1) == 0
        assert (out / "samples/step_1/scores.json").exists()
        capsys.readouterr()
        assert "give one data set's folder in it, hyp" in failure(capsys, out / "samples/step_1", ref, "--asr", "none")


class TestReport:
    def test_a_step_before_the_newest_has_its_page(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp = texts(tones(tmp_path / "hyp", "a.wav"), **{"a.hyp": "the cat sat down"})
        ref, out = texts(tmp_path / "ref", a="the cat sat down"), tmp_path / "out"
        for step in (5, 3):
            assert score(hyp, ref, "--asr", "none", "--out", out, "--step", step) == 0
        page = out / "samples/step_3/report.html"
        assert capsys.readouterr().out.splitlines()[-1] == f"report: {page}"
        assert '"step": 3, "about"' in page.read_text()
        assert '"step": 5, "about"' in (out / "report.html").read_text()
        assert "samples/step_3/report.html" in (out / "report.html").read_text()

    def test_it_is_written_anew(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hyp = texts(tones(tmp_path / "hyp", "a.wav"), **{"a.hyp": "the cat sat down"})
        ref, out = texts(tmp_path / "ref", a="the cat sat down"), tmp_path / "out"
        assert score(hyp, ref, "--asr", "none", "--out", out) == 0
        (out / "report.html").unlink()
        assert main(["report", str(out)]) == 0
        assert "the cat sat down" in (out / "report.html").read_text()

    def test_a_folder_that_is_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", str(tmp_path)]) == 2
        assert "is no run" in capsys.readouterr().err
