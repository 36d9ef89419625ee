"""The ``augment`` part of a config, as dataclasses for OmegaConf. An entry that isn't there is off."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RoleSwapConfig:
    """The user becomes the agent and the agent the user."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5


@dataclass
class EarlyInterruptionConfig:
    """The user barges in: one turn of the agent is cut short."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5
    # How long the agent goes on while the user speaks, frames.
    overlap_frames: int = 5
    # How long the agent has spoken, at least, when the user starts, frames.
    min_spoken_frames: int = 5


@dataclass
class RandomSilenceConfig:
    """A pause where nobody speaks."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5
    # The shortest pause, frames.
    num_frames_min: int = 3
    # The longest pause, frames.
    num_frames_max: int = 25


@dataclass
class SpeedConfig:
    """Both channels faster or slower, and so higher or lower."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5
    # The slowest speed, 1.0 being the original; speeds are drawn in steps of 0.01.
    factor_min: float = 0.9
    # The fastest speed.
    factor_max: float = 1.1


@dataclass
class VolumeConfig:
    """A gain for each channel, drawn apart."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5
    # The user's lowest gain, dB.
    user_gain_db_min: float = -6.0
    # The user's highest gain, dB.
    user_gain_db_max: float = 6.0
    # The agent's lowest gain, dB. With both of the agent's at 0 stored codes are kept.
    agent_gain_db_min: float = -6.0
    # The agent's highest gain, dB.
    agent_gain_db_max: float = 6.0


@dataclass
class RirConfig:
    """The user in a room."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5
    # Room impulse responses: a folder of wav and flac files, a list of such files, or a lhotse manifest of
    # recordings or cuts.
    files: Any = None


@dataclass
class NoiseConfig:
    """Noise behind the user."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5
    # Noises: a folder of wav and flac files, a list of such files, or a lhotse manifest of recordings or cuts.
    files: Any = None
    # The loudest noise: the user's speech is so much above it, dB.
    snr_db_min: float = 10.0
    # The softest noise, dB.
    snr_db_max: float = 30.0


@dataclass
class TelephonyConfig:
    """The user on a telephone: 8 kHz, band-limited, 8-bit mu-law."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5
    # What the line lets through starts here, Hz.
    band_low_hz: float = 300.0
    # What the line lets through ends here, Hz; 4000 at most.
    band_high_hz: float = 3400.0


@dataclass
class CodecConfig:
    """The user through a lossy codec."""

    # Share of the dialogues that are changed, 0 to 1.
    prob: float = 0.5
    # The codecs to draw from: mp3, opus, vorbis.
    codecs: list[str] = field(default_factory=lambda: ["mp3", "opus", "vorbis"])
    # The weakest compression, 0 to 0.99 (libsndfile's scale).
    compression_min: float = 0.5
    # The strongest compression, 0 to 0.99.
    compression_max: float = 0.95


@dataclass
class AugmentConfig:
    """What changes training dialogues, in the order in which it is applied."""

    # Both channels: the user and the agent change places.
    role_swap: RoleSwapConfig | None = None
    # Both channels: the agent is cut short where the user barges in.
    early_interruption: EarlyInterruptionConfig | None = None
    # Both channels: a pause is put in.
    random_silence: RandomSilenceConfig | None = None
    # Both channels: faster or slower.
    speed: SpeedConfig | None = None
    # Both channels: each louder or softer.
    volume: VolumeConfig | None = None
    # The user's channel: a room.
    rir: RirConfig | None = None
    # The user's channel: noise.
    noise: NoiseConfig | None = None
    # The user's channel: a telephone line.
    telephony: TelephonyConfig | None = None
    # The user's channel: a lossy codec.
    codec: CodecConfig | None = None
