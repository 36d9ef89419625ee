import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from s2s_eval.quality import QualityScorer
from s2s_eval.speaker_similarity import SpeakerSimilarity
from tests.s2s_eval.builders import RATE, spoken_dialogues
from tests.s2s_eval.scoring_models import nemo_speakers, torchscript_loudness

SILENCE = np.zeros(RATE, np.float32)
AGENT_EMBEDDING = [0.170829, 0.184845, 0.210141, 0.264278]  # its four largest values
USER_EMBEDDING = [0.211819, 0.212753, 0.218962, 0.272664]  # its four largest values


def noisy(audio: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, level, len(audio))
    return np.clip(audio + noise, -1, 1).astype(np.float32)


def only_sound(audio: np.ndarray) -> np.ndarray:
    """Return one uninterrupted stretch of speech."""
    loud = np.flatnonzero(np.abs(audio) > 0.02)
    return audio[loud[0] : loud[0] + 2 * RATE]


class TestDnsmos:
    @pytest.fixture(scope="class")
    @staticmethod
    def scorer():
        scorer = QualityScorer("dnsmos", device="cpu")
        yield scorer
        scorer.close()

    @pytest.mark.parametrize("seconds", [2, 9.5, 10.2])
    def test_it_equals_the_packages_own_figure(self, scorer, seconds: float) -> None:
        from speechmos import dnsmos

        speech = np.tile(only_sound(spoken_dialogues()[0].agent), 6)[: int(seconds * RATE)]
        [ours] = scorer.score([noisy(speech, 0.02)], RATE)  # noise: nothing is cut as silence
        whole_blocks = noisy(speech, 0.02)[: len(speech) // 320 * 320]
        assert ours == pytest.approx(float(dnsmos.run(whole_blocks, RATE)["ovrl_mos"]), abs=1e-4)

    def test_noise_costs_points_and_silence_none(self, scorer) -> None:
        agent = spoken_dialogues()[0].agent
        clean, at_24k, worse, silent = [
            scorer.score([audio], rate)[0]
            for audio, rate in [
                (agent, RATE),
                (soxr.resample(agent, RATE, 24000), 24000),
                (noisy(agent, 0.1), RATE),
                (SILENCE, RATE),
            ]
        ]
        assert silent is None
        assert 1 < worse < clean - 0.5 < 5
        assert at_24k == pytest.approx(clean, abs=0.2)


class TestTorchScript:
    def test_the_modules_opinion_of_what_is_audible(self, tmp_path: Path) -> None:
        scorer = QualityScorer(f"torchscript:{torchscript_loudness(tmp_path / 'mos.pt')}", device="cpu")
        square = np.tile(np.array([0.25, -0.25], np.float32), RATE)
        spoken = np.concatenate([SILENCE, square, SILENCE])
        assert scorer.score([spoken, SILENCE, square[:0]], RATE) == [pytest.approx(2.0), None, None]
        [long] = scorer.score([np.tile(np.concatenate([square, 2 * square]), 10)], RATE)  # 40 s: two pieces
        assert long == pytest.approx(1 + 4 * 0.375)

    def test_a_module_of_another_shape_is_refused(self, tmp_path: Path) -> None:
        torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "mos.pt"))
        scorer = QualityScorer(f"torchscript:{tmp_path / 'mos.pt'}", device="cpu")
        with pytest.raises(ValueError, match=r"mos\.pt gave \(1, 16000\).*must give \[B\]"):
            scorer.score([np.tile(np.array([0.25, -0.25], np.float32), RATE // 2)], RATE)

    def test_a_file_that_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "mos.pt").write_bytes(b"not a module")
        scorer = QualityScorer(f"torchscript:{tmp_path / 'mos.pt'}", device="cpu")
        with pytest.raises(ValueError, match=r"could not load .*mos\.pt") as caught:
            scorer.score([np.tile(np.array([0.25, -0.25], np.float32), RATE // 2)], RATE)
        assert "\n" not in str(caught.value)


class TestResemblyzer:
    @pytest.fixture(scope="class")
    @staticmethod
    def speakers():
        return SpeakerSimilarity("resemblyzer", device="cpu")

    def test_the_same_voice_is_nearer_than_another(self, speakers) -> None:
        france, sums = spoken_dialogues()[:2]
        same_agent, same_user, other, other_2, itself, silent = speakers.score(
            [france.agent, france.user, france.agent, sums.agent, france.agent, SILENCE],
            [sums.agent, sums.user, france.user, france.user, france.agent, france.agent],
            RATE,
            RATE,
        )
        assert silent is None
        assert itself == pytest.approx(1, abs=1e-5)
        assert min(same_agent, same_user) > 0.85
        assert max(other, other_2) < 0.75
        assert speakers.score([france.agent], [SILENCE], RATE, RATE) == [None]

    def test_each_side_has_its_own_rate(self, speakers) -> None:
        agent = spoken_dialogues()[0].agent
        [score] = speakers.score([soxr.resample(agent, RATE, 22050)], [agent], 22050, RATE)
        assert score > 0.97

    def test_embeddings_equal_those_of_the_packages_own_code(self) -> None:
        """Values of Resemblyzer 0.1.4's VoiceEncoder.embed_utterance for the same file, volume normalised."""
        from s2s_eval.speakers_resemblyzer import Resemblyzer

        france = spoken_dialogues()[0]
        for audio, expected in [(france.agent, AGENT_EMBEDDING), (france.user, USER_EMBEDDING)]:
            embedding = Resemblyzer("cpu").embed(audio)
            assert embedding.shape == (256,)
            np.testing.assert_allclose(embedding[embedding.argsort()[-4:]], expected, atol=1e-5)


def test_nemo_speaker_models_give_nemos_embeddings(tmp_path: Path) -> None:
    from nemo.collections.asr.models import EncDecSpeakerLabelModel

    from s2s_eval.speakers_nemo import NemoSpeakers

    path = nemo_speakers(tmp_path / "speakers.nemo")
    agent, user = only_sound(spoken_dialogues()[0].agent), only_sound(spoken_dialogues()[0].user)
    model = EncDecSpeakerLabelModel.restore_from(str(path), map_location="cpu").eval()
    expected = [model.infer_segment(audio)[0][0] for audio in (agent, user)]
    expected = [embedding.detach().numpy() / float(embedding.norm()) for embedding in expected]
    ours = NemoSpeakers(str(path), "cpu")
    for audio, embedding in zip((agent, user), expected, strict=True):
        np.testing.assert_allclose(ours.embed(audio), embedding, atol=1e-5)

    for value in (f"nemo:{path}", str(path)):
        speakers = SpeakerSimilarity(value, device="cpu")
        itself, silent = speakers.score([agent, SILENCE], [agent, agent], RATE, RATE)
        assert itself == pytest.approx(1, abs=1e-5)
        assert silent is None


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [
        (QualityScorer, "utmos", "unknown quality='utmos': known are none, dnsmos, torchscript"),
        (QualityScorer, "torchscript:/nowhere/mos.pt", "there is no file /nowhere/mos.pt"),
        (SpeakerSimilarity, "ecapa", "unknown speaker_similarity='ecapa': known are none, resemblyzer"),
        (SpeakerSimilarity, "nemo:/nowhere/x.nemo", "there is no NeMo file /nowhere/x.nemo"),
    ],
)
def test_what_is_unknown_or_missing_is_refused_at_once(make, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(value)


def test_none_scores_nothing() -> None:
    audio = spoken_dialogues()[0].agent
    quality, speakers = QualityScorer("none"), SpeakerSimilarity("none")
    assert quality.score([audio], RATE) == [None]
    assert speakers.score([audio], [audio], RATE, RATE) == [None]
    assert not quality.is_loaded
    assert not speakers.is_loaded


@pytest.mark.parametrize(
    ("package", "make", "command"),
    [
        (
            "speechmos",
            "from s2s_eval.quality import QualityScorer as S; S('dnsmos')",
            "pip install 's2s-eval[quality]'",
        ),
        (
            "resemblyzer",
            "from s2s_eval.speaker_similarity import SpeakerSimilarity as S; S('resemblyzer')",
            "pip install --no-deps Resemblyzer",
        ),
    ],
)
def test_a_missing_package_says_what_to_install(package: str, make: str, command: str) -> None:
    """In a process of its own, where the package can't be found."""
    program = (
        "import importlib.util as u; real = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {package!r} else real(name, *a)\n{make}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError:")
    assert f"`{command}`" in last
