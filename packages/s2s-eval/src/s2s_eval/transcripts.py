"""A recogniser that is loaded when first needed, freed on demand, and remembers audio it has heard."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from s2s_eval.asr import AsrBackend, AsrConfig, Samples, load_asr
from s2s_eval.turn_windows import trim_silence

MAX_REMEMBERED = 200_000


class Transcriber:
    """Transcribes turns; silence costs nothing and is "".

    The model is loaded by the first audible turn, so a rank that scores nothing never loads it.
    """

    def __init__(self, config: AsrConfig, silence_dbfs: float) -> None:
        self.config = config
        self._silence_dbfs = silence_dbfs
        self._backend: AsrBackend | None = None
        self._remembered: dict[str, str] = {}

    @property
    def is_loaded(self) -> bool:
        """Whether the recogniser holds memory now."""
        return self._backend is not None

    def use_device(self, device: str) -> None:
        """Load on this device ("cpu", "cuda:1") if the config leaves it to us."""
        if self.config.device == "auto":
            self.config = replace(self.config, device=device)

    def transcribe(self, audios: Sequence[Samples], sample_rate: int, *, remember: bool = False) -> list[str]:
        """Return one transcript for each 1-D audio.

        ``remember`` keeps the transcripts by the audio's hash for the rest of the run, past :meth:`close`: for audio
        that comes again at every validation, such as the references.
        """
        spoken = [trim_silence(audio, sample_rate, self._silence_dbfs) for audio in audios]
        keys = [_key(audio, sample_rate) if remember else "" for audio in spoken]
        texts = [self._remembered.get(key, "") for key in keys]
        todo = [i for i, audio in enumerate(spoken) if len(audio) and keys[i] not in self._remembered]
        if todo:
            self._backend = self._backend or load_asr(self.config)
            new = self._backend.transcribe([spoken[i] for i in todo], sample_rate)
            for i, text in zip(todo, new, strict=True):
                texts[i] = text
                if remember and len(self._remembered) < MAX_REMEMBERED:
                    self._remembered[keys[i]] = text
        return texts

    def close(self) -> None:
        """Free the recogniser, loaded or not."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None


def _key(audio: Samples, sample_rate: int) -> str:
    return hashlib.sha1(audio.tobytes(), usedforsecurity=False).hexdigest() + str(sample_rate)
