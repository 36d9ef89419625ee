"""Our loader beside NeMo's on one Shar, in turns, as the machine is noisy: `python -m benchmarks.loader_vs_nemo`."""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.corpus import write_duplex_shar
from benchmarks.peers.loaders import audio_s_per_s, contenders


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=200, help="dialogues of 30 to 60 s in the Shar")
    parser.add_argument("--rounds", type=int, default=5, help="times that each loader is measured")
    parser.add_argument("--batches", type=int, default=12, help="batches of about 200 s in each measurement")
    parser.add_argument("--format", choices=["flac", "wav"], default="flac", help="of the audio in the Shar")
    parser.add_argument("--num-workers", type=int, nargs="+", default=[0, 2])
    args = parser.parse_args()
    logging.disable(logging.INFO)  # NeMo announces each loader
    with tempfile.TemporaryDirectory() as folder:
        shar = write_duplex_shar(Path(folder) / "shar", args.dialogues, audio_format=args.format)
        for num_workers in args.num_workers:
            print(table(measure(shar, num_workers, args.rounds, args.batches), num_workers))


def measure(shar: str, num_workers: int, rounds: int, num_batches: int) -> dict[str, list[float]]:
    """Return the audio-seconds per second of each loader, one value a round."""
    made = contenders(shar, num_workers)
    speeds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, make in made.items():
            speeds[name].append(audio_s_per_s(make, num_batches))
    return speeds


def table(speeds: dict[str, list[float]], num_workers: int) -> str:
    """Return the medians, the range, and the ratios to NeMo's of the same round."""
    lines = [
        f"num_workers={num_workers}, {len(speeds['NeMo'])} rounds",
        f"{'':12} {'audio-s/s':>10} {'range':>15} {'x NeMo':>7} {'range':>12}",
    ]
    for name, values in speeds.items():
        ratios = [value / nemo for value, nemo in zip(values, speeds["NeMo"], strict=True)]
        lines.append(
            f"{name:12} {statistics.median(values):10.0f} {span(values, 0):>15} "
            f"{statistics.median(ratios):7.2f} {span(ratios, 2):>12}"
        )
    return "\n".join(lines)


def span(values: Sequence[float], digits: int) -> str:
    """Return the smallest and the largest value."""
    return f"{min(values):.{digits}f} - {max(values):.{digits}f}"


if __name__ == "__main__":
    main()
