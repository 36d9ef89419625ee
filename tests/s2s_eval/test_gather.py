"""Metrics over ranks equal those of one process: real gloo processes, uneven data, one rank with none."""

from pathlib import Path

import pytest

from s2s_eval.dialogue_scores import DialogueScore, one_per_dialogue, validation_metrics
from s2s_eval.gather import gather_lists
from tests.s2s_eval.builders import scored
from tests.s2s_model.processes import run_on_ranks

TEXTS = ["two and two is four", "the sky is blue today", "my name is joe and i live here", "it is half past ten"]
SHARES = {2: [[0, 1, 2, 3, 4], []], 3: [[4], [], [0, 1, 2, 3]]}


def dialogue(index: int) -> DialogueScore:
    text = TEXTS[index % len(TEXTS)]
    heard = text if index % 2 else text[:-4]
    return scored("d", f"cut-{index}", [(heard, text)])


def on_rank(rank: int, shares: list[list[int]]) -> dict[str, float]:
    mine = [dialogue(index) for index in shares[rank]]
    return validation_metrics(one_per_dialogue(gather_lists(mine)), has_asr=True)


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_gets_the_metrics_of_one_process(world_size: int, tmp_path: Path) -> None:
    expected = validation_metrics([dialogue(index) for index in range(5)], has_asr=True)
    assert run_on_ranks(on_rank, tmp_path, SHARES[world_size], world_size=world_size) == [expected] * world_size


def test_without_a_process_group_there_is_one_rank() -> None:
    assert gather_lists([1, 2]) == [[1, 2]]
