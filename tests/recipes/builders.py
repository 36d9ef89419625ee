"""Short runs of the recipe, and readers of what they leave."""

import json
from pathlib import Path
from typing import Any

from s2s_train.cli import main
from s2s_train.run_folder import RunFolder
from tests.s2s_train.builders import CLOCK

RECIPES = Path(__file__).parents[2] / "recipes/talk"
TOKENS = ["model.text_pad_token=<pad>", "model.text_bos_token=<s>", "model.text_eos_token=</s>"]
ON_A_CPU = [
    "trainer.accelerator=cpu", "trainer.precision=32-true", "parallel.compile=false", "parallel.cuda_graphs=false",
]  # fmt: skip
SHORT = [
    "trainer.max_steps=2", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1", "model.scoring_asr=none",
    "data.train_ds.load_target_audio=true", "data.train_ds.bucket_batch_size=[2,2,2,2,2]",
    "data.train_ds.num_workers=1", "data.train_ds.pin_memory=false", "data.validation_ds.batch_size=2",
    "model.lr_scheduler.warmup_steps=1", "data.train_ds.bucket_buffer_size=6",
]  # fmt: skip
ONE_STEP = [
    "--minutes", "0.001", "--scored", "1", "data.train_ds.num_workers=0", "data.train_ds.pin_memory=false",
    "data.train_ds.bucket_batch_size=[2,2,2,2,2]", "data.train_ds.bucket_buffer_size=6",
    "data.validation_ds.batch_size=2",
]  # fmt: skip
READ_ONCE = ["--minutes", "0.001", "--batch", "2", "--scored", "2", "--processes", "0", *TOKENS]


def fit(recipe: str, llm: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    """One stage of two steps; returns the lines of its run's metrics without what depends on the clock."""
    own = [f"name={name}", f"model.pretrained_llm={llm}"]
    assert main(["fit", str(RECIPES / f"{recipe}.yaml"), *TOKENS, *ON_A_CPU, *SHORT, *own, *overrides]) == 0
    lines = [json.loads(line) for line in RunFolder(Path("runs") / name).metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def logged(lines: list[dict[str, Any]], key: str) -> dict[int, float]:
    """By step, a metric where it was logged."""
    return {line["step"]: line[key] for line in lines if key in line}
