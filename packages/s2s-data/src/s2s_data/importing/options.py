"""What both imports can be told."""

from dataclasses import dataclass

from s2s_data.errors import DataError, unknown_name
from s2s_data.roles import Roles

AUDIO_FORMATS = ("flac", "mp3", "wav")
ON_ERROR = ("skip", "stop")

# The rates that MP3 has, Hz.
_MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class ImportOptions:
    """How dialogues are read and written."""

    # What the user's audio is resampled to, Hz.
    source_rate_hz: int = 16000
    # What the agent's audio is resampled to, Hz.
    target_rate_hz: int = 22050
    # How audio is stored in the Shar: flac and wav keep 16 bits, mp3 is a fifth of flac's size.
    audio_format: str = "flac"
    # Dialogues in a shard.
    shard_size: int = 100
    # The speaker names that the Shar's turns get: the config's input_roles and output_roles.
    user_role: str = "user"
    agent_role: str = "agent"
    # The speaker names that turns and words have in the transcripts.
    user_speakers: tuple[str, ...] = ("SPEAKER_OTHER", "user", "User")
    agent_speakers: tuple[str, ...] = ("SPEAKER_MAIN", "agent", "Agent", "assistant", "Assistant")
    # Words of one side that are further apart belong to two turns, seconds.
    max_gap_s: float = 0.8
    # Where a transcript has no turn of the user, take the loud parts of the user's channel as turns without text.
    find_user_turns: bool = False
    # Pad the shorter of two files to the longer one's duration, where they differ.
    pad_channels: bool = False
    # At a dialogue that can't be used: "stop" with an error, or "skip" it.
    on_error: str = "stop"
    # Processes that work on shards; 0 does it all in this one.
    workers: int = 0

    def __post_init__(self) -> None:
        """Raise :class:`DataError` for a value that can't be."""
        for name, known in (("audio_format", AUDIO_FORMATS), ("on_error", ON_ERROR)):
            if getattr(self, name) not in known:
                raise DataError(f"{name}: {unknown_name(getattr(self, name), known)}")
        for name, least in (("source_rate_hz", 1), ("target_rate_hz", 1), ("shard_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        if self.max_gap_s < 0:
            raise DataError(f"max_gap_s is {self.max_gap_s}, but must be at least 0")
        for name in ("source_rate_hz", "target_rate_hz"):
            if self.audio_format == "mp3" and getattr(self, name) not in _MP3_RATES_HZ:
                raise DataError(f"{name} is {getattr(self, name)}, but MP3 has only {_MP3_RATES_HZ}: take flac")
        Roles.of([self.user_role], [self.agent_role])
        if both := sorted(set(self.user_speakers) & set(self.agent_speakers)):
            raise DataError(f"{both} is in user_speakers and in agent_speakers: a speaker is on one side")
