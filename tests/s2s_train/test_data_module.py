from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from s2s_data.config import DataConfig
from s2s_data.position import StreamPosition
from s2s_train.data_module import DuplexDataModule, ResumableLoader


class Numbers:
    """Batch i is i: what a TrainLoader is to its user, with a count for a position."""

    def __init__(self):
        self.position = StreamPosition(seed=0, seed_config="", order="", dp_world_size=1, next_worker=0, workers=())

    def __iter__(self):
        while True:
            number = self.position.next_worker
            self.position = replace(self.position, next_worker=number + 1)
            yield number

    def load_state_dict(self, state):
        self.position = StreamPosition.from_dict(state)


def loader() -> ResumableLoader:
    return ResumableLoader(Numbers())


def take(iterator, count, of):
    """Fetch and train on `count` batches, one at a time."""
    taken = []
    for batch in islice(iterator, count):
        of.mark_delivered()
        taken.append(batch)
    return taken


def test_epochs_go_on_where_the_last_one_ended():
    data = loader()
    assert take(iter(data), 3, data) == [0, 1, 2]
    assert take(iter(data), 3, data) == [3, 4, 5]


def test_what_was_fetched_ahead_and_thrown_away_is_handed_out_again():
    data = loader()
    epoch = iter(data)
    assert [next(epoch) for _ in range(4)] == [0, 1, 2, 3]
    data.mark_delivered()
    data.mark_delivered()
    assert take(iter(data), 4, data) == [2, 3, 4, 5]


@pytest.mark.parametrize("fetched_ahead", [0, 1, 3])
def test_state_counts_batches_trained_on_not_those_fetched(fetched_ahead):
    data = loader()
    epoch = iter(data)
    take(epoch, 5, data)
    for _ in range(fetched_ahead):
        next(epoch)
    resumed = loader()
    resumed.load_state_dict(data.state_dict())
    assert take(iter(resumed), 2, resumed) == [5, 6]


@pytest.mark.parametrize("predict_user_text", [False, True])
def test_text_alone_needs_a_model_that_reads_what_the_user_says(predict_user_text):
    model = SimpleNamespace(cfg=SimpleNamespace(predict_user_text=predict_user_text))
    module = DuplexDataModule(DataConfig())
    module.trainer = SimpleNamespace(training=True, lightning_module=model)
    module._train = SimpleNamespace(mark_delivered=lambda: None)
    batch = {"cut_ids": ["a", "b"], "text_only": torch.tensor([False, False])}
    assert module.on_before_batch_transfer(batch, 0) is batch
    batch["text_only"] = torch.tensor([False, True])
    if predict_user_text:
        assert module.on_before_batch_transfer(batch, 0) is batch
    else:
        with pytest.raises(
            ValueError, match=r"cut b is text alone \(text_only\), and without model\.predict_user_text"
        ):
            module.on_before_batch_transfer(batch, 0)
