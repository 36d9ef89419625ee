"""`s2s-data check`: one of every defect, and clean corpora."""

import io
import json
from collections import defaultdict
from pathlib import Path

import pytest
import soundfile
from lhotse import Recording

from s2s_data import DataError, check_shar
from s2s_data.check import KINDS, WARNING, Report
from s2s_data.check.channels import duration_problems
from s2s_data.cli import main
from s2s_data.roles import Roles
from tests.s2s_data.broken_corpus import ANSWERED, ASKED, SHARD_SIZE, build, make, write

ROLES = Roles.of(["user"], ["agent"])

# Each defect is in the cut named after it. What else is found there, and where a defect has no such cut:
ALSO = {
    "no-agent-turn": {"loud-outside"},
    "no-target": {"codes-missing"},
    "durations-differ": {"codes-missing"},
    "no-source": {"codes-missing"},
}
NOT_IN_THE_CORPUS = {"role-unmatched", "no-cuts"}  # nothing else would be found beside them


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("check") / "broken"))


@pytest.fixture(scope="module")
def report(broken: str) -> Report:
    return check_shar(broken, ROLES)


def clean_shar(folder: Path) -> str:
    return str(write(folder, [make(f"d{number}") for number in range(6)]))


def test_every_defect_is_found_in_its_cut_and_nowhere_else(report: Report) -> None:
    found = defaultdict(set)
    for problem in report.problems:
        found[problem.cut_id].add(problem.kind)
    of_cuts = KINDS.keys() - NOT_IN_THE_CORPUS - {"shared-id", "broken-shard", "unloadable"}
    expected: dict[str | None, set[str]] = {kind: {kind} | ALSO.get(kind, set()) for kind in of_cuts}
    expected.update({f"unloadable-{number}": {"unloadable"} for number in range(SHARD_SIZE)})
    expected[None] = {"broken-shard"}
    expected["good-0"] = {"shared-id"}
    assert found == expected


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("unknown-speaker", "speaker 'dog' is in neither role: its turns are left out"),
        ("turn-outside", "agent turn at 2.00-4.40 s lies outside the cut's 4.00 s"),
        ("turns-overlap", "agent turn at 2.00-2.80 s overlaps the next of its side, at 2.40 s"),
        ("empty-text", "agent turn at 2.00-2.80 s has no text"),
        ("text-too-long", "agent turn at 2.00-2.80 s has 12 words for 10 frames: 3 of them don't fit"),
        ("durations-differ", "the cut ends at 4.00 s, its recording 4.00 s, its target_audio 3.50 s"),
        ("silent-turn", "agent turn at 2.00-2.80 s is silent in target_audio"),
        ("non-finite", "64000 samples of its recording are NaN or infinite"),
        ("code-length", "its target_codes have 25 frames, the cut 50"),
        ("codec-differs", "codec: another-codec; in 27 of 28 cuts: the-codec"),
        ("codebooks-differ", "codebooks: 8; in 27 of 28 cuts: 4"),
        ("rates-differ", "user's sample rate: 8000 Hz; in 30 of 31 cuts: 16000 Hz"),
    ],
)
def test_a_problem_says_what_and_where(report: Report, kind: str, what: str) -> None:
    assert [problem.what for problem in report.problems if problem.kind == kind] == [what]


def test_loud_speech_is_placed_to_the_frame(report: Report) -> None:
    (problem,) = [problem for problem in report.problems if problem.cut_id == "loud-outside"]
    assert problem.what == "target_audio is loud at 0.40-0.80 s, where no turn is"


def test_no_problem_takes_more_than_a_line(report: Report) -> None:
    assert all("\n" not in str(problem) for problem in report.problems)


def test_several_processes_find_the_same(broken: str, report: Report) -> None:
    again = check_shar(broken, ROLES, num_workers=2)
    assert [p[:3] for p in again.problems] == [p[:3] for p in report.problems]
    assert again.num_cuts == report.num_cuts


def test_table_json_and_exit_code(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", broken, "--json", str(tmp_path / "r" / "report.json")]) == 1
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar where no terminal is
    written = json.loads((tmp_path / "r" / "report.json").read_text())
    num_warnings = sum(problem["severity"] == WARNING for problem in written["problems"])
    num_errors = len(written["problems"]) - num_warnings
    assert out.endswith(f"\n32 cuts, {num_errors} errors, {num_warnings} warnings\n")
    assert written["kinds"].keys() == KINDS.keys() - NOT_IN_THE_CORPUS
    table = out[out.index("what to do") :]
    for kind, entry in written["kinds"].items():
        (row,) = [line.split() for line in table.splitlines() if line.startswith(f"{kind} ")]
        assert row[1:3] == [entry["severity"], str(entry["num_cuts"] or "-")]
    assert {"severity", "kind", "cut_id", "where", "what"} == written["problems"][0].keys()


def test_only_the_first_examples_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shar = str(write(tmp_path / "shar", [make(f"d{number}", target=[]) for number in range(6)]))
    assert main(["check", shar, "--examples", "2"]) == 1
    out = capsys.readouterr().out
    assert out.count("is silent in target_audio") == 2
    assert "  and 4 more" in out
    assert "d0, d1, …" in out


def test_a_value_that_is_no_text_keeps_a_cut_from_loading(tmp_path: Path) -> None:
    cuts = [make("good"), make("bad")]
    cuts[1].supervisions[1].custom = {"value": 4}
    (problem,) = check_shar(str(write(tmp_path / "shar", cuts)), ROLES).problems
    assert (problem.kind, problem.cut_id) == ("unloadable", "bad")
    assert "the value of its supervision bad-1 is 4" in problem.what


def test_clean_corpus_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", clean_shar(tmp_path / "shar")]) == 0
    assert capsys.readouterr().out == "6 cuts, 0 errors, 0 warnings\n"


def test_warnings_alone_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shar = str(write(tmp_path / "shar", [make("loud", amplitude=4.0)]))
    assert main(["check", shar]) == 0
    assert capsys.readouterr().out.endswith("1 cut, 0 errors, 1 warning\n")


def test_other_roles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [("caller", *ASKED[1:]), ("bot", *ANSWERED[1:])]
    shar = str(write(tmp_path / "shar", [make("d", turns)]))
    assert main(["check", shar, "--input-roles", "caller", "--output-roles", "bot"]) == 0
    capsys.readouterr()
    assert main(["check", shar, "--input-roles", "caller"]) == 1
    what = "the output roles ['agent'] match no turn; the speakers are 'caller' (1 turns), 'bot' (1 turns)"
    assert f"role-unmatched (error)\n  all cuts: {what}\n" in capsys.readouterr().out


def test_no_cut_at_all_is_an_error(tmp_path: Path) -> None:
    shar = clean_shar(tmp_path / "shar")
    for manifest in (tmp_path / "shar").glob("cuts.*"):
        manifest.write_bytes(manifest.read_bytes()[:40])
    assert [problem.kind for problem in check_shar(shar, ROLES).problems] == ["broken-shard", "broken-shard", "no-cuts"]


def test_a_cut_that_a_blend_cant_convert_is_named(tmp_path: Path) -> None:
    entry = f"{{type: lhotse_shar, shar_path: {clean_shar(tmp_path / 'shar')}}}"
    blend = tmp_path / "blend.yaml"
    blend.write_text(f"- {{type: s2s_duplex_overlap_as_s2s_duplex, input_cfg: [{entry}]}}\n")
    problem = check_shar(str(blend), ROLES).problems[0]
    assert (problem.kind, problem.cut_id) == ("unloadable", "d0")
    assert "agent_segments" in problem.what


def test_codes_of_another_codec_than_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shar = clean_shar(tmp_path / "shar")
    assert main(["check", shar, "--codec", "the-codec"]) == 0
    assert main(["check", shar, "--codec", "new-codec"]) == 1
    out = capsys.readouterr().out
    assert "the-codec" in out
    assert "new-codec" in out


def test_noise_is_no_speech(tmp_path: Path) -> None:
    """A hiss throughout the agent's channel, 14 dB under its speech, isn't loud; one 6 dB under it is."""
    hissing = {"quiet": make("quiet"), "loud": make("loud")}
    for name, share in (("quiet", 0.2), ("loud", 0.5)):
        audio_S = hissing[name].load_target_audio()[0]
        audio_S += share * make("tone", target=[(0.0, 4.0)]).load_target_audio()[0]
        wav = io.BytesIO()
        soundfile.write(wav, audio_S, 22050, format="WAV")
        hissing[name].target_audio = Recording.from_bytes(wav.getvalue(), name)
    shar = str(write(tmp_path / "shar", list(hissing.values())))
    problems = check_shar(shar, ROLES).problems
    assert {(problem.kind, problem.cut_id) for problem in problems} == {("loud-outside", "loud")}


def test_speech_may_outlast_its_turn_a_little(tmp_path: Path) -> None:
    shar = str(write(tmp_path / "shar", [make("little", target=[(2.0, 3.3)]), make("much", target=[(2.0, 3.7)])]))
    problems = check_shar(shar, ROLES).problems
    assert [(problem.kind, problem.cut_id) for problem in problems] == [("loud-outside", "much")]


def test_a_channel_that_a_blend_shifts_may_be_shorter() -> None:
    cut = make("shifted", target_duration_s=2.0)
    assert [kind for kind, _ in duration_problems(cut, 0.08)] == ["durations-differ"]
    cut.target_audio_offset_s = 2.0
    assert list(duration_problems(cut, 0.08)) == []


def test_no_shar_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(DataError, match="doesn't exist"):
        check_shar(str(tmp_path / "none"), ROLES)
