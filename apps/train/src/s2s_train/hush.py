"""Silence for what only repeats itself on every start."""

from __future__ import annotations

import logging
import os
import warnings


def hush() -> None:
    """Keep libraries' start-up chatter off the screen. To be called before NeMo is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("NEMO_LOGGING_LEVEL", "ERROR")
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    for name in ("nemo_logger", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(lightning|torch|nemo|lhotse|pydub|webdataset)")
