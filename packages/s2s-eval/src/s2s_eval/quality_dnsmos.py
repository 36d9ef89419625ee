"""DNSMOS P.835 with the ONNX model that the package speechmos ships.

The model is run by onnxruntime here: the package's own wrapper needs librosa and requests, computes a second model's
score that nobody asked for, and runs on the CPU only.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2s_eval.asr import Samples

SAMPLE_RATE_HZ = 16000
WINDOW_SAMPLES = 144160  # 9.01 s: the model's fixed input
HOP_SAMPLES = SAMPLE_RATE_HZ
WINDOWS_TOGETHER = 2  # one takes about 200 MiB while it is judged
OVERALL = 2  # the outputs are speech, background, overall
CALIBRATION = (-0.06766283, 1.11546468, 0.04602535)  # of the overall score, published with the model


class Dnsmos:
    """See :class:`s2s_eval.quality.QualityModel`. On a GPU if the installed onnxruntime has CUDA, else on the CPU."""

    def __init__(self, device: str) -> None:
        import onnxruntime

        spec = importlib.util.find_spec("speechmos")
        assert spec is not None and spec.submodule_search_locations, "checked before loading"  # noqa: PT018
        self._weights: bytes | None = _read(Path(spec.submodule_search_locations[0]))
        self._session: Any = None
        kind, _, index = device.partition(":")
        self._is_cuda = kind == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        cuda = ("CUDAExecutionProvider", {"device_id": int(index or 0)})
        self._providers = [*([cuda] if self._is_cuda else []), "CPUExecutionProvider"]

    @property
    def is_on_gpu(self) -> bool:
        """Whether a session holds GPU memory now."""
        return self._is_cuda and self._session is not None

    @property
    def size_bytes(self) -> int:
        """Bytes of the model's file."""
        return len(self._weights or b"")

    def to_device(self) -> None:
        """Make the session."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()  # not all cores: other ranks share them
            options.log_severity_level = 3
            options.enable_cpu_mem_arena = False  # it would keep those 200 MiB for good
            self._session = onnxruntime.InferenceSession(self._weights, options, providers=self._providers)

    def to_host(self) -> None:
        """End the session; the file's bytes stay."""
        self._session = None

    def close(self) -> None:
        """Free everything."""
        self._session = self._weights = None

    def score(self, audio_S: Samples) -> float:
        """Return the mean overall score of the audio's 9 s windows, one every second."""
        while len(audio_S) < WINDOW_SAMPLES:  # as published: short audio is repeated
            audio_S = np.concatenate([audio_S, audio_S])
        # as published: of windows that reach past the last whole second there are none
        count = max(1, (len(audio_S) // SAMPLE_RATE_HZ * SAMPLE_RATE_HZ - WINDOW_SAMPLES) // HOP_SAMPLES + 1)
        audio_S = np.clip(audio_S, -1, 1).astype(np.float32)
        windows_NS = np.lib.stride_tricks.sliding_window_view(audio_S, WINDOW_SAMPLES)[::HOP_SAMPLES][:count]
        raw = [
            self._session.run(None, {"input_1": np.ascontiguousarray(windows_NS[i : i + WINDOWS_TOGETHER])})[0]
            for i in range(0, count, WINDOWS_TOGETHER)
        ]
        return float(np.polyval(CALIBRATION, np.concatenate(raw)[:, OVERALL]).mean())


def _read(package: Path) -> bytes:
    path = package / "dnsmos_models" / "sig_bak_ovr.onnx"
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"quality=dnsmos: the installed speechmos has no readable {path}: install speechmos 0.0.1.1, or set "
            "quality=none"
        ) from error
