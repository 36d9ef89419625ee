"""NeMo's speech models, by ``.nemo`` file or pretrained name."""

from pathlib import Path
from typing import Any

from s2s_eval.lifecycle import one_line

DEFAULT_SAMPLE_RATE_HZ = 16000


def load_nemo(model_class: Any, model: str, setting: str) -> Any:
    """Load the model into host memory. Raises ValueError, which names the ``setting``, where NeMo can't."""
    try:
        if model.endswith(".nemo"):
            return model_class.restore_from(str(Path(model).expanduser()), map_location="cpu")
        return model_class.from_pretrained(model, map_location="cpu")
    except Exception as error:  # NeMo raises whatever the hub, tar or Hydra raise
        raise ValueError(
            f"{setting}: NeMo could not load {model!r}: {one_line(error)}. Check the name or file, or give one that is "
            "on this machine"
        ) from error


def sample_rate_of(model: Any) -> int:
    """Return the rate in Hz at which a model listens."""
    return int(model.cfg.preprocessor.get("sample_rate", DEFAULT_SAMPLE_RATE_HZ))
