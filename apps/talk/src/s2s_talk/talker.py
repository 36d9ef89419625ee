"""The model, talking to several users at once: one tick hears 80 ms of each and answers.

Shapes: `B` places, `S` samples of user audio, `R` samples of agent audio, `K` codebooks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from s2s_talk.protocol import Format

if TYPE_CHECKING:
    from s2s_model.duplex import DuplexS2SModel
    from s2s_model.session import SessionOutput

NUM_TIMED = 16  # ticks that fill the codec's window before speed is measured, and as many that are
SILENT_DB = -90.0  # what is told of a frame of zeros


@dataclass(frozen=True)
class Answer:
    """What one user gets for one frame."""

    audio_R: NDArray[np.float32]
    text: str
    user_text: str
    token_id: int
    token_kind: str  # pad, bos, eos, text; wait: the encoder hears ahead and can't tell yet
    token_text: str
    speech_kind: str  # delay, bos, eos, sound
    user_level_db: float  # of what was heard
    agent_level_db: float


class Talker:
    """A fixed number of places in one session of the model; a user who comes takes a place, which then begins anew.

    One session for all, not one a user: on a GPU the places of a batch cost hardly more than one of them. They share
    nothing but the clock: each row of the batch has its own state, `reset` clears one alone, and what is pushed is made
    of 16-bit integers (protocol.py), so no user can bring in a NaN, for which the session would refuse all rows.

    Empty places hear silence, and begin anew only when they are full: of most codecs streams are decoded together, on a
    GPU by one CUDA graph, where all have lasted longer than the codec's window.

    All methods but `__init__` belong to one thread.

    Raises:
        ValueError: the model can't have live sessions, or none that begin at different times.
    """

    def __init__(self, model: DuplexS2SModel, num_places: int, max_duration_s: float, *, compile: bool = False) -> None:
        self._model, self._num_places = model, num_places
        self._session = model.open_session(num_places, max_duration_s, compile=compile)
        self.max_frames = int(max_duration_s / model.frame_length_s + 1e-6)
        self.latency_s = self._session.latency_s
        self.writes_user_text = bool(model.cfg.predict_user_text)
        codec = model.audio_codec
        self.format = Format(
            source_sample_rate_hz=model.source_sample_rate,
            source_samples_per_frame=round(model.source_sample_rate * model.frame_length_s),
            target_sample_rate_hz=model.target_sample_rate,
            target_samples_per_frame=codec.samples_per_frame,
            frame_length_s=model.frame_length_s,
        )
        self._silence_S = np.zeros(self.format.source_samples_per_frame, dtype=np.float32)
        self._ages = [0] * num_places  # frames since each place began
        self._session.reset([0])  # an LLM with a recurrent state refuses that for one of several

    def tick(
        self, frames: Mapping[int, NDArray[np.float32] | None], begins: frozenset[int] = frozenset()
    ) -> dict[int, Answer]:
        """Let the places hear their next frame [S], None being silence; return their answers.

        Places that aren't in `frames` are empty. Those in `begins` have a new user.
        """
        places = range(self._num_places)
        empty = {p for p in places if p not in frames and self._ages[p] >= self.max_frames}
        if anew := sorted(empty | begins):
            self._session.reset(anew)
        for place in places:
            self._ages[place] = 1 if place in anew else self._ages[place] + 1
        heard = [self._silence_S if (frame := frames.get(p)) is None else frame for p in places]
        output = self._session.push(torch.from_numpy(np.stack(heard)))
        return self._answers(output, dict(zip(places, heard, strict=True)), list(frames))

    def clear(self) -> None:
        """Let all places begin anew."""
        self._session.reset()
        self._ages = [0] * self._num_places

    def time_ticks(self) -> float:
        """Seconds that a tick takes with all places taken. Nobody may talk meanwhile."""
        noise_BS = np.random.default_rng(0).normal(0, 0.1, (self._num_places, len(self._silence_S))).astype(np.float32)
        took_s = []
        for _ in range(min(2 * NUM_TIMED, self.max_frames)):
            began_s = time.perf_counter()
            self.tick(dict(enumerate(noise_BS)))
            took_s.append(time.perf_counter() - began_s)
        self.clear()
        return statistics.median(took_s[-NUM_TIMED:])

    def _answers(
        self, output: SessionOutput, heard: Mapping[int, NDArray[np.float32]], places: list[int]
    ) -> dict[int, Answer]:
        num_known = output.tokens_BN.shape[1]
        assert num_known <= 1, f"a push of one frame made {num_known} known"
        audio_BR = output.audio_BR.float().cpu().numpy()
        if not num_known:  # the encoder hears ahead
            audio_BR = np.zeros((self._num_places, self.format.target_samples_per_frame), dtype=np.float32)
        tokens = output.tokens_BN.tolist()
        codes = output.codes_BNK.tolist()
        answers = {}
        for place in places:
            token_id = tokens[place][0] if num_known else self._model.tokenizer.pad_id
            kind = self._token_kind(token_id) if num_known else "wait"
            answers[place] = Answer(
                audio_R=audio_BR[place],
                text=output.text[place],
                user_text=output.user_text[place],
                token_id=token_id,
                token_kind=kind,
                token_text=self._model.tokenizer.ids_to_text([token_id]) if kind == "text" else "",
                speech_kind=self._speech_kind(codes[place][0]) if num_known else "delay",
                user_level_db=_level_db(heard[place]),
                agent_level_db=_level_db(audio_BR[place]),
            )
        return answers

    def _token_kind(self, token_id: int) -> str:
        tokenizer = self._model.tokenizer
        kinds = {tokenizer.pad_id: "pad", tokenizer.bos_id: "bos", tokenizer.eos_id: "eos"}
        return kinds.get(token_id, "text")

    def _speech_kind(self, codes_K: list[int]) -> str:
        speech = self._model.speech
        kinds = {speech.delay_id: "delay", speech.bos_id: "bos", speech.eos_id: "eos"}
        return next((kinds[code] for code in codes_K if code in kinds), "sound")


def _level_db(audio_S: NDArray[np.float32]) -> float:
    """Root mean square in dB below full scale."""
    power = float(np.mean(np.square(audio_S, dtype=np.float64)))
    return round(max(10 * float(np.log10(power)), SILENT_DB), 1) if power > 0 else SILENT_DB
