"""A recogniser that is loaded when first needed, and remembers audio it has heard."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from s2s_eval.asr import AsrBackend, AsrConfig, Samples, check_asr, load_asr
from s2s_eval.lifecycle import LazyModel
from s2s_eval.turn_windows import trim_silence

MAX_REMEMBERED = 200_000


class Transcriber(LazyModel[AsrBackend]):
    """Transcribes turns; silence costs nothing and is "".

    The model is loaded by the first audible turn, so a rank that scores nothing never loads it. See
    :class:`s2s_eval.lifecycle.LazyModel` for :meth:`use_device`, :meth:`release` and :meth:`close`.
    """

    def __init__(self, config: AsrConfig, silence_dbfs: float) -> None:
        """Load nothing yet. Raises ValueError in one line where the library, the model or the device is missing."""
        super().__init__(f"{config.backend}:{config.model}", config.device, config.keep)
        check_asr(config)
        self.config = config
        self._silence_dbfs = silence_dbfs
        self._remembered: dict[str, str] = {}

    def transcribe(self, audios: Sequence[Samples], sample_rate: int, *, remember: bool = False) -> list[str]:
        """Return one transcript for each 1-D audio.

        ``remember`` keeps the transcripts by the audio's hash for the rest of the run, past :meth:`release`: for audio
        that comes again at every validation, such as the references.
        """
        spoken = [trim_silence(audio, sample_rate, self._silence_dbfs) for audio in audios]
        keys = [_key(audio, sample_rate) if remember else "" for audio in spoken]
        texts = [self._remembered.get(key, "") for key in keys]
        todo = [i for i, audio in enumerate(spoken) if len(audio) and keys[i] not in self._remembered]
        if todo:
            with self._running() as backend:
                new = backend.transcribe([spoken[i] for i in todo], sample_rate)
            for i, text in zip(todo, new, strict=True):
                texts[i] = text
                if remember and len(self._remembered) < MAX_REMEMBERED:
                    self._remembered[keys[i]] = text
        return texts

    def _load(self, device: str) -> AsrBackend:
        return load_asr(replace(self.config, device=device))


def _key(audio: Samples, sample_rate: int) -> str:
    return hashlib.sha1(audio.tobytes(), usedforsecurity=False).hexdigest() + str(sample_rate)
