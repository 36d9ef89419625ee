"""How fast text gets onto the frame grid, beside NeMo's way of doing it."""

import logging
import zlib
from typing import Any

import pytest
from lhotse import MonoCut, SupervisionSegment
from lhotse.testing.dummies import dummy_recording

from s2s_data import FrameGrid, Turn, build_text_channel

FRAME_S = 0.08
RATE_HZ = 16000
DURATION_S = 120.0
TEXT = "the capital of the country that you have asked me about is the city of that name"


class WordTokenizer:
    """One id a word, under our names and NeMo's."""

    pad_id = pad = 0
    bos_id = bos = 1
    eos_id = eos = 2
    unk_id = None

    def text_to_ids(self, text: str) -> list[int]:
        return [3 + zlib.crc32(word.encode()) % 997 for word in text.split()]


TURNS = [Turn("agent", 8.0 * i + 4.0, 3.6, TEXT) for i in range(14)]


def test_two_minute_dialogue(benchmark: Any) -> None:
    grid = FrameGrid.of(DURATION_S, FRAME_S, RATE_HZ)
    channel = benchmark(build_text_channel, TURNS, grid, WordTokenizer())
    assert channel.num_dropped_tokens == 0


def test_two_minute_dialogue_nemo(benchmark: Any) -> None:
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    nemo = pytest.importorskip("nemo.collections.speechlm2.data.s2s_dataset")
    cut = MonoCut("cut", 0, DURATION_S, 0, recording=dummy_recording(0, DURATION_S))
    cut.supervisions = [
        SupervisionSegment(str(i), "cut", turn.start_s, turn.duration_s, text=turn.text, speaker="agent")
        for i, turn in enumerate(TURNS)
    ]
    theirs = benchmark(nemo.build_token_channel, cut, WordTokenizer(), FRAME_S, {"agent"}, 0)
    ours = build_text_channel(TURNS, FrameGrid.of(DURATION_S, FRAME_S, RATE_HZ), WordTokenizer())
    assert theirs.tolist() == ours.tokens_T.tolist()
