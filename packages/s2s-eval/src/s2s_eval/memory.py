"""Giving a scoring model's memory back."""

import gc

import torch


def free_memory() -> None:
    """Collect what is no longer referenced and return CUDA's cached blocks to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
