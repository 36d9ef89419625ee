"""The ``data`` part of a config, as dataclasses for OmegaConf.

Keys that NeMo's ``s2s_duplex.yaml`` has keep their names and meaning there.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from s2s_data.augment.config import AugmentConfig
from s2s_data.errors import DataError, unknown_name

_ABOVE_0 = (
    "batch_size",
    "batch_duration",
    "quadratic_duration",
    "shuffle_buffer_size",
    "num_buckets",
    "bucket_buffer_size",
    "max_open_streams",
)


@dataclass
class SourceConfig:
    """What training data and validation sets have in common. Of the first three keys, give one."""

    # A blend: a list of entries {type: lhotse_shar | lhotse | group, weight, tags, ...}, or a YAML file of
    # them.
    input_cfg: Any = None
    # A Shar folder, a list of folders, or a mapping of fields to files.
    shar_path: Any = None
    # A lhotse cut manifest whose audio lies in files of its own.
    cuts_path: str | None = None
    # Most dialogues in a batch. Give this or batch_duration, or both.
    batch_size: int | None = None
    # Most audio in a batch: dialogues x the longest one, in seconds.
    batch_duration: float | None = None
    # Adds duration² / quadratic_duration to each dialogue's duration when it is counted, in seconds.
    quadratic_duration: float | None = None
    # Shorter dialogues are left out, seconds.
    min_duration: float | None = None
    # Longer dialogues are left out, seconds.
    max_duration: float | None = None
    # Dialogues with fewer text tokens of the agent a second are left out.
    min_tps: float | None = None
    # Dialogues with more text tokens of the agent a second are left out.
    max_tps: float | None = None
    # Dialogues that can't be loaded are skipped, named and counted; a larger share of them ends the run. 0 ends it
    # at the first.
    max_unreadable_share: float = 0.01
    # Worker processes; 0 loads in the main process.
    num_workers: int = 0
    # Copy batches to pinned memory, so that they move to the GPU while it computes.
    pin_memory: bool = False
    # Read target_audio where target_codes are stored too. (Where they aren't it is always read.)
    load_target_audio: bool = False
    # In training: orders the data when shard_seed is "randomized".
    seed: int = 0
    # In training, what orders the data: "randomized" (by seed), an integer (by that), or "trng" (another order in each
    # run, the same on all ranks). Ranks and workers never share data, whichever it is.
    shard_seed: Any = "randomized"
    # Accepted for NeMo's files, and unused: the user's audio is brought to source_sample_rate and the agent's
    # to target_sample_rate, each in one step. Hz.
    sample_rate: int | None = None


@dataclass
class TrainDataConfig(SourceConfig):
    """Training data: endless, each source drawn by its weight."""

    # Shuffle the shards at each pass, and the dialogues of a window.
    shuffle: bool = True
    # A window: dialogues from which batches are made at a time, without bucketing. Of local data a window holds
    # manifests only; where audio comes from URLs or pipes, its encoded audio too.
    shuffle_buffer_size: int = 1000
    # Make batches of dialogues of like duration.
    use_bucketing: bool = False
    # Number of buckets, if bucket_duration_bins isn't given.
    num_buckets: int = 30
    # The durations that separate the buckets, ascending, seconds; or pairs of [seconds, text tokens of the agent].
    # Estimated from the data if not given.
    bucket_duration_bins: list[Any] | None = None
    # Most dialogues in a batch, for each of bucket_duration_bins; longer dialogues than the last are left out.
    bucket_batch_size: list[int] | None = None
    # The window with bucketing.
    bucket_buffer_size: int = 1000
    # Flattens (below 1) or sharpens (above 1) the weights of input_cfg: one number, or one for each level of groups.
    reweight_temperature: Any = None
    # Sources whose manifests are open at a time, 256 if not given. One that was closed is opened again and read up to
    # its place; what comes from URLs or pipes stays open, as that would fetch it again.
    max_open_streams: int | None = None
    # Augmentations, each off unless given.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # Dialogues read (their manifests only) to estimate the bins.
    num_cuts_for_bins_estimate: int = 10000


@dataclass
class ValidationDataConfig(SourceConfig):
    """Validation data: several named sets, each read once and in order."""

    # The sets by name. A set inherits the keys beside it and overrides them: {name: {shar_path: a_folder}}; null leaves
    # out one that a file further back has.
    datasets: dict[str, Any] = field(default_factory=dict)
    # Reference audio is what generated audio is compared with.
    load_target_audio: bool = True

    def __post_init__(self) -> None:
        self.datasets = {name: given for name, given in self.datasets.items() if given is not None}


@dataclass
class DataConfig:
    """Everything about data."""

    # One frame, seconds: the model emits one text token and one set of codes in each.
    frame_length: float = 0.08
    # The user's audio as the encoder hears it, Hz.
    source_sample_rate: int = 16000
    # The agent's audio as the codec speaks it, Hz.
    target_sample_rate: int = 22050
    # Speaker names (supervision.speaker) of the user's turns.
    input_roles: list[str] = field(default_factory=lambda: ["user"])
    # Speaker names of the agent's turns.
    output_roles: list[str] = field(default_factory=lambda: ["agent"])
    # Spread the tokens of a user's turn over it, about where they are said, instead of one a frame from its start: for
    # model.predict_user_text, which can't write what it hasn't heard yet. Words' times (alignment["word"] of lhotse's
    # supervisions) tell where, where there are some.
    spread_source_text: bool = False
    # The same of the agent's turns: what is written then stands where it is said, and an answer that the user cuts off
    # ends in both. Let the text go ahead of the speech with model.advance_text_channel_by.
    spread_target_text: bool = False
    # How many frames before each span of words with times its text stands then, one token a frame. A codec's codes tell
    # of sound to come: a model that reads them beside or before the text learns to read it off them.
    lead_target_text_by: int = 0
    # What is trained on.
    train_ds: TrainDataConfig = field(default_factory=TrainDataConfig)
    # What is validated on.
    validation_ds: ValidationDataConfig = field(default_factory=ValidationDataConfig)
    # What the finished model is tested on, as validation_ds says it.
    test_ds: ValidationDataConfig = field(default_factory=ValidationDataConfig)


def as_data_config(cfg: DataConfig | DictConfig) -> DataConfig:
    """Return ``cfg`` as a checked dataclass.

    Raises :class:`DataError` for an unknown key, a value of another type, or a missing ("???") value.
    """
    try:
        data = _to_object(cfg) if isinstance(cfg, DictConfig) else cfg
    except MissingMandatoryValue as error:
        raise DataError(f"a value of the data config is still ???: {error}") from error
    except OmegaConfBaseException as error:
        raise DataError(f"data config: {error}") from error
    assert isinstance(data, DataConfig)
    if has_source(data.train_ds):
        _check_source(data.train_ds, "data.train_ds")
    for section in ("validation_ds", "test_ds"):
        sets = getattr(data, section)
        if has_source(sets) and not sets.datasets:
            raise DataError(
                f"data.{section} names data of its own: put it under a name, as in "
                f"data.{section}.datasets.my_set.shar_path"
            )
    return data


def _to_object(cfg: DictConfig) -> Any:
    if OmegaConf.get_type(cfg) is DataConfig:
        return OmegaConf.to_object(cfg)  # where it stands in a larger config, as it may refer to it
    plain = OmegaConf.to_container(cfg, resolve=True)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), plain))


def validation_sets(cfg: ValidationDataConfig, section: str = "validation_ds") -> dict[str, SourceConfig]:
    """Return the named sets of ``data.<section>``, each with what it inherits.

    Raises :class:`DataError` for an unknown key or a wrong value.
    """
    inherited = {item.name: getattr(cfg, item.name) for item in fields(SourceConfig)}
    sets = {}
    for name, overrides in cfg.datasets.items():
        where = f"data.{section}.datasets.{name}"
        if not isinstance(overrides, dict):
            raise DataError(f"{where} must be a mapping such as {{shar_path: a_folder}}")
        for key in overrides:
            if key not in inherited:
                raise DataError(f"{where}: {unknown_name(str(key), inherited)}")
        try:
            merged = OmegaConf.merge(OmegaConf.structured(SourceConfig(**inherited)), overrides)
            merged_set = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise DataError(f"{where}: {error}") from error
        assert isinstance(merged_set, SourceConfig)
        _check_source(merged_set, where)
        sets[name] = merged_set
    return sets


def has_source(cfg: SourceConfig) -> bool:
    """Tell whether ``cfg`` names any data."""
    return any(value is not None for value in (cfg.input_cfg, cfg.shar_path, cfg.cuts_path))


def _check_source(cfg: SourceConfig, where: str) -> None:
    bucket_sizes = getattr(cfg, "bucket_batch_size", None)
    if bucket_sizes is not None and not getattr(cfg, "use_bucketing", False):
        raise DataError(f"{where}.bucket_batch_size is for buckets: set use_bucketing: true, or give batch_size")
    if cfg.quadratic_duration is not None and cfg.batch_duration is None:
        raise DataError(f"{where}.quadratic_duration changes what counts for batch_duration: give that too")
    if cfg.batch_size is None and cfg.batch_duration is None and bucket_sizes is None:
        raise DataError(f"{where} needs batch_size (dialogues) or batch_duration (seconds)")
    for key in _ABOVE_0:
        value = getattr(cfg, key, None)
        if value is not None and value <= 0:
            raise DataError(f"{where}.{key} is {value}, but must be above 0")
    if bucket_sizes is not None and (not bucket_sizes or min(bucket_sizes) <= 0):
        raise DataError(f"{where}.bucket_batch_size is {bucket_sizes}, but must hold numbers above 0")
    if not 0 <= cfg.max_unreadable_share <= 1:
        raise DataError(f"{where}.max_unreadable_share is {cfg.max_unreadable_share}, but must be from 0 to 1")
    if cfg.num_workers < 0:
        raise DataError(f"{where}.num_workers is {cfg.num_workers}, but must be 0 or more")
    if cfg.shard_seed not in ("randomized", "trng") and not isinstance(cfg.shard_seed, int):
        raise DataError(f'{where}.shard_seed is {cfg.shard_seed!r}, but must be "randomized", "trng" or an integer')
