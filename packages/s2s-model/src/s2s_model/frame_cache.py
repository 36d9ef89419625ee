"""The LLM's cache in generation: keys and values of a fixed number of frames.

Shapes: `B` sessions, `M` frames of room, `T` frames, `D` a head's width.
"""

from functools import cache
from typing import Any

from torch import Tensor

ROOM_FRAMES = 64  # caches are a multiple of this long, so that attention over them can be cut into equal parts
LONG_FRAMES = 512
LONG_ROOM_FRAMES = 256


def room_for(num_frames: int) -> int:
    """How many frames a cache for so many holds (M)."""
    step = ROOM_FRAMES if num_frames <= LONG_FRAMES else LONG_ROOM_FRAMES
    return -(-num_frames // step) * step


def make_cache(llm_config: Any, max_frames: int, used: Tensor) -> tuple[Any, bool]:
    """A cache of fixed size; of growing size for LLMs that keep more than keys and values (then False).

    Layers with a sliding window keep all frames too: the window is in their mask, and sessions of a batch may then
    begin at different frames.

    Args:
        llm_config: the LLM's transformers config.
        max_frames: how many frames it has to hold.
        used: int64, without dimensions: how many it holds. Whoever calls the LLM counts it up, after the call.
    """
    from transformers import DynamicCache, StaticCache
    from transformers.cache_utils import Cache, StaticLayer

    layers = StaticCache(config=llm_config, max_cache_len=max_frames).layers
    if all(isinstance(layer, StaticLayer) for layer in layers):
        room = room_for(max_frames)
        return Cache(layers=[_frame_layer(room, used) for _ in layers]), True
    return DynamicCache(config=llm_config), False


def _frame_layer(room: int, used: Tensor) -> Any:
    layer = _frame_layer_class()(max_cache_len=room)
    layer.cumulative_length = used
    return layer


@cache  # one class: torch.compile then takes all layers for alike
def _frame_layer_class() -> Any:
    from transformers.cache_utils import StaticLayer

    class FrameLayer(StaticLayer):
        """Takes one frame a step, where `cumulative_length` says; all layers share that tensor.

        It passes for the whole cache inside a layer: which one it belongs to isn't asked for.
        """

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            """Put in keys and values [B, heads, 1, D]; returns those of all frames [B, heads, M, D]."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            assert self.keys is not None
            assert self.values is not None
            place_1 = self.cumulative_length.view(1)
            self.keys.index_copy_(2, place_1, key_states)
            # Under autocast keys leave the rotary embedding in float32, values don't.
            self.values.index_copy_(2, place_1, value_states.to(self.values.dtype))
            return self.keys, self.values

    return FrameLayer
