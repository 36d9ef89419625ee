"""Silence for what only repeats itself on every start."""

from __future__ import annotations

import logging
import os
import warnings

from s2s_model.nemo_file import hush_nemo


def hush() -> None:
    """Keep libraries' start-up chatter off the screen. To be called before NeMo is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hush_nemo()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(lightning|torch|nemo|lhotse|pydub|webdataset)")
