"""What a user can set about scoring."""

import math
from dataclasses import dataclass

from s2s_eval.text import check_language


@dataclass
class ScoringConfig:
    """How validation is scored. Works as an OmegaConf structured config."""

    # The recogniser: none, faster_whisper:/folder, package:<PyPI package>, transformers:<name or folder>, /x.nemo or a
    # NeMo model name.
    scoring_asr: str = "none"
    # Where it runs: cpu, cuda, cuda:1; auto: where the model is.
    asr_device: str = "auto"
    # Turns transcribed together.
    asr_batch_size: int = 8
    # CPU threads of faster-whisper; 0: its own choice.
    asr_num_threads: int = 0
    # What is spoken, as ISO 639-1 code: for multilingual recognisers, and how texts are normalised and split.
    language: str = "en"
    # How natural speech sounds, by a model that an installed package ships: none, dnsmos or torchscript:/model.pt.
    quality: str = "none"
    # How alike generated and reference voice are: none, resemblyzer, /x.nemo or nemo:NAME.
    speaker_similarity: str = "none"
    # Keep these models in host memory between validations: auto (where there is room), always or never.
    keep_models: str = "auto"
    # Also transcribe the codec's reconstruction of the reference: the figure that perfect codes would get.
    score_ceiling: bool = True
    # Also score Lightning's sanity check before training.
    score_sanity_check: bool = False
    # The model may start this much before the reference turn and still be scored with it.
    early_start_s: float = 0.4
    # An agent that the user interrupts has to be silent after this.
    barge_in_stop_s: float = 1.5
    # Sound below this loudness (20 ms RMS, dB of full scale) is silence and never reaches the recogniser.
    silence_dbfs: float = -50.0
    # Dialogues of each data set whose audio is written to samples/ and shown in the report.
    max_samples_per_dataset: int = 8
    # Rewrite report.html after each validation.
    write_report: bool = True
    # Rate in Hz of a batch's source_audio (the user).
    source_sample_rate: int = 16000
    # Rate in Hz of a batch's target_audio (the reference agent).
    target_sample_rate: int = 22050


def check_config(config: ScoringConfig) -> None:
    """Raise ValueError for a number or a language that means nothing; of the models, scorers check theirs."""
    check_language(config.language)
    least = {
        "asr_batch_size": 1,
        "asr_num_threads": 0,
        "early_start_s": 0,
        "barge_in_stop_s": 0,
        "max_samples_per_dataset": 0,
        "source_sample_rate": 1,
        "target_sample_rate": 1,
    }
    for key, limit in least.items():
        value = getattr(config, key)
        if not (math.isfinite(value) and value >= limit):
            raise ValueError(f"scoring.{key}={value} can't be: give {limit} or more")
    if not config.silence_dbfs < 0:  # NaN isn't, either
        raise ValueError(f"scoring.silence_dbfs={config.silence_dbfs} can't be: give dB of full scale, below 0")
