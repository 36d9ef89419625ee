"""Metrics over ranks equal those of one process: real gloo processes, uneven data, one rank with none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s2s_eval.dialogue_scores import DialogueScore, one_per_dialogue, validation_metrics
from s2s_eval.gather import gather_lists
from tests.s2s_eval.builders import scored

TEXTS = ["two and two is four", "the sky is blue today", "my name is joe and i live here", "it is half past ten"]
SHARES = {2: [[0, 1, 2, 3, 4], []], 3: [[4], [], [0, 1, 2, 3]]}


def dialogue(index: int) -> DialogueScore:
    text = TEXTS[index % len(TEXTS)]
    heard = text if index % 2 else text[:-4]
    return scored("d", f"cut-{index}", [(heard, text)])


def run_rank(rank: int, world_size: int, store: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    mine = [dialogue(index) for index in SHARES[world_size][rank]]
    metrics = validation_metrics(one_per_dialogue(gather_lists(mine)), has_asr=True)
    Path(f"{store}.{rank}").write_text(json.dumps(metrics))
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_gets_the_metrics_of_one_process(world_size: int, tmp_path: Path) -> None:
    expected = validation_metrics([dialogue(index) for index in range(5)], has_asr=True)
    store = tmp_path / "store"
    program = (
        "import sys; from tests.s2s_eval.test_gather import run_rank; run_rank(*map(int, sys.argv[1:3]), sys.argv[3])"
    )
    ranks = [
        subprocess.Popen([sys.executable, "-c", program, str(rank), str(world_size), str(store)])
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(timeout=120) for process in ranks] == [0] * world_size
    finally:
        for process in ranks:
            process.kill()
    for rank in range(world_size):
        assert json.loads(Path(f"{store}.{rank}").read_text()) == expected


def test_without_a_process_group_there_is_one_rank() -> None:
    assert gather_lists([1, 2]) == [[1, 2]]
