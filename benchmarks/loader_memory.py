"""Whether memory stays flat: `python -m benchmarks.loader_memory` draws 10,000 batches and prints the resident size."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2s_data import train_dataloader
from tests.s2s_data.builders import config, dialogues, write_shar
from tests.s2s_data.nemo_reference import SharedTokenizer


def main() -> None:
    """Draw batches of a small corpus, over and over, and print a line for each tenth of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        batches = small_batches(Path(folder))
        for number in range(11):
            print(f"{number * args.batches // 10:6} batches: {resident_mib():.1f} MiB", flush=True)
            draw(batches, args.batches // 10 if number < 10 else 0)


def small_batches(folder: Path) -> Iterator[Any]:
    """Return endless batches of two short dialogues: what leaks does so per batch, not per second."""
    shar = write_shar(folder / "shar", dialogues("d", 60, codes=True), codes=True)
    train = {"shar_path": shar, "use_bucketing": True, "num_buckets": 3, "bucket_buffer_size": 20}
    return iter(train_dataloader(config({**train, "load_target_audio": True}), SharedTokenizer()))


def draw(batches: Iterator[Any], num_batches: int) -> None:
    """Draw batches and let them go."""
    for _ in range(num_batches):
        next(batches)


def resident_mib() -> float:
    """Return the resident size of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("/proc/self/status has no VmRSS")


if __name__ == "__main__":
    main()
