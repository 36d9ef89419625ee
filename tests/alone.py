"""Use a package in an environment that holds nothing but it and its needs: `python tests/alone.py s2s_data`."""

import importlib
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Python put this script's folder first; there, folders named after the packages hide them.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

FOREIGN = {
    "lightning",
    "nemo",
    "pytorch_lightning",
    "s2s_eval",
    "s2s_model",
    "s2s_parallel",
    "s2s_train",
    "transformers",
    "wandb",
}


def use_s2s_data() -> None:
    """Write a tiny Shar and load a batch of it with and without workers."""
    from s2s_data import train_dataloader
    from tests.s2s_data.builders import WordTokenizer, config, dialogues, write_shar

    with tempfile.TemporaryDirectory() as folder:
        shar = write_shar(Path(folder) / "shar", dialogues("d", 4, codes=True), codes=True)
        for num_workers in (0, 1):
            cfg = config({"shar_path": shar, "num_workers": num_workers})
            batch = next(iter(train_dataloader(cfg, WordTokenizer())))
            assert len(batch["cut_ids"]) == batch["source_audio"].shape[0] == batch["target_codes"].shape[0] == 2


USES: dict[str, Callable[[], None]] = {"s2s_data": use_s2s_data}


def main(name: str) -> int:
    """Import all of a package, use it, and say what it dragged in that it mustn't."""
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
    USES[name]()
    if dragged_in := sorted(FOREIGN & sys.modules.keys()):
        print(f"{name} imports {', '.join(dragged_in)}: it must work without", file=sys.stderr)
        return 1
    print(f"{name} works alone: {len(sys.modules)} modules, none of {', '.join(sorted(FOREIGN))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
