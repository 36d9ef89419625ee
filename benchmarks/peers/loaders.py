"""Our training loader and NeMo's, with the same data, batching, buffers and tokenizer."""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from s2s_data import train_dataloader
from tests.s2s_data.builders import config
from tests.s2s_data.nemo_reference import SharedTokenizer, nemo_dataloader, nemo_dataset

RATE_HZ = 16000
BATCHING: dict[str, Any] = {
    "batch_duration": 200.0,
    "use_bucketing": True,
    "num_buckets": 4,
    "bucket_duration_bins": [37.0, 44.0, 52.0],
    "bucket_buffer_size": 60,
    "shuffle_buffer_size": 60,
    "shuffle": True,
    "shard_seed": "randomized",
}
# What a worker has loaded ahead when the clock starts isn't counted as work of the measured time.
NUM_WARMUP_BATCHES = 4

Batches = Iterator[Any]


def our_batches(shar: str, *, num_workers: int, load_target_audio: bool) -> Batches:
    """Return our endless batches, with the agent's audio or with its stored codes alone."""
    train = {**BATCHING, "batch_size": None, "shar_path": shar, "num_workers": num_workers}
    return iter(train_dataloader(config({**train, "load_target_audio": load_target_audio}), SharedTokenizer()))


def nemo_batches(shar: str, *, num_workers: int) -> Batches:
    """Yield NeMo's endless batches; it knows no stored codes."""
    plain = {**BATCHING, "shar_path": shar, "num_workers": num_workers}
    loader = nemo_dataloader(plain, nemo_dataset(SharedTokenizer()))
    try:
        yield from loader
    finally:
        # The thread that fills lhotse's buckets outlives the loader, and Python waits for it when it exits.
        if num_workers == 0:
            loader.dataset.sampler.cuts_iter.close()


def contenders(shar: str, num_workers: int) -> dict[str, Callable[[], Batches]]:
    """Return what is compared, by name."""
    return {
        "NeMo": partial(nemo_batches, shar, num_workers=num_workers),
        "ours": partial(our_batches, shar, num_workers=num_workers, load_target_audio=True),
        "ours, codes": partial(our_batches, shar, num_workers=num_workers, load_target_audio=False),
    }


def warm(make: Callable[[], Batches]) -> Batches:
    """Start a loader and draw its first batches."""
    batches = make()
    for _ in range(NUM_WARMUP_BATCHES):
        next(batches)
    return batches


def audio_s_of(batches: Batches, num_batches: int) -> float:
    """Draw batches and return how many seconds of dialogue they hold."""
    return sum(int(next(batches)["source_audio_lens"].sum()) for _ in range(num_batches)) / RATE_HZ


def audio_s_per_s(make: Callable[[], Batches], num_batches: int) -> float:
    """Return the seconds of dialogue that a fresh loader gives in a second, once it is under way."""
    batches = warm(make)
    started_s = time.perf_counter()
    audio_s = audio_s_of(batches, num_batches)
    took_s = time.perf_counter() - started_s
    del batches
    gc.collect()  # none of its workers runs while another loader is measured
    return audio_s / took_s
