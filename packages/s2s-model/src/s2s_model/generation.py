"""Generation frame by frame, for a batch of recordings.

Shapes: `B` recordings, `T` frames (80 ms), `K` codebooks, `H` hidden.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from s2s_model.frame_cache import room_for
from s2s_model.frame_decoder import FrameDecoder, FrameModel
from s2s_model.llm import llm_body, text_config
from s2s_model.sampling import GenerationConfig, drawing_from
from s2s_parallel.graph_capture import autocast_dtype

MOST_ROOM = 16384  # frames that kept decoders may hold together, beside the one in use: 0.7 GiB for TinyLlama in bf16


class Generated(NamedTuple):
    """What the agent wrote and said, control tokens included."""

    text_BT: Tensor  # int64
    codes_BTK: Tensor  # int64, as predicted: delay_speech_channel_by - 1 frames behind the codec's own grid
    user_text_BT: Tensor | None = None  # int64, what the user said, where the model writes that


class DecoderPool:
    """Decoders that are kept, so that the next batch of the same shape replays their CUDA graphs.

    They are made anew where the weights have moved. A copy of a model begins with none.
    """

    def __init__(self) -> None:
        self._decoders: dict[Hashable, FrameDecoder] = {}  # the one used last is the last
        self._weights: Hashable = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoderPool":
        return DecoderPool()

    def __reduce__(self) -> Any:
        return DecoderPool, ()

    def __len__(self) -> int:
        return len(self._decoders)

    def take(self, key: Hashable, weights: Hashable, build: Callable[[], FrameDecoder]) -> FrameDecoder:
        """The decoder kept as `key`, or a new one.

        Args:
            key: all that a decoder depends on, but for the weights.
            weights: where they lie.
            build: makes one.
        """
        if weights != self._weights:
            self.release()
            self._weights = weights
        decoder = self._decoders.pop(key, None)
        if decoder is None:
            self._make_room()
            decoder = build()
        self._decoders[key] = decoder
        return decoder

    def release(self) -> None:
        """Forget all, and free their memory."""
        self._decoders.clear()

    def _make_room(self) -> None:
        while sum(decoder.room for decoder in self._decoders.values()) > MOST_ROOM:
            del self._decoders[next(iter(self._decoders))]


@torch.no_grad()
def generate(
    model: FrameModel,
    pool: DecoderPool,
    source_BTH: Tensor,
    config: GenerationConfig,
    generator: torch.Generator | None = None,
    compile: bool = False,
) -> Generated:
    """Predict text and codes at each frame from the user's frames up to it and from what was predicted before."""
    B, T, _ = source_BTH.shape
    device = source_BTH.device
    room = room_for(max(T, 1))

    def build() -> FrameDecoder:
        return FrameDecoder(model, B, room, device, config, torch.Generator(device), compile)

    key = (B, room, device, source_BTH.dtype, repr(config), autocast_dtype(device.type), compile)
    decoder = pool.take(key, model.weights(), build)
    text_BT = torch.empty(B, T, dtype=torch.long, device=device)
    codes_BTK = text_BT[..., None].repeat(1, 1, model.num_codebooks)
    user_text_BT = torch.empty_like(text_BT) if model.writes_user_text else None
    assert decoder.generator is not None
    with drawing_from(generator, decoder.generator):
        decoder.reset(range(B))
        for t in range(T):
            frame = decoder.step(source_BTH[:, t])
            text_BT[:, t], codes_BTK[:, t] = frame.text_B, frame.codes_BK
            if user_text_BT is not None and frame.user_text_B is not None:
                user_text_BT[:, t] = frame.user_text_B
    return Generated(text_BT, codes_BTK, user_text_BT)


def why_eager(llm: Any) -> str | None:
    """Why the LLM's steps can't be captured as a CUDA graph, if so; the log tells it to the user."""
    name, attention = type(llm).__name__, text_config(llm)._attn_implementation
    if not getattr(llm_body(llm), "_can_compile_fullgraph", False):
        return f"transformers says that {name} can't be compiled as a whole"
    if attention not in ("sdpa", "eager"):
        return f"model.attn_implementation is {attention}: sdpa or eager can be captured"
    ropes = " ".join(str(getattr(module, "rope_type", "")) for module in llm.modules())
    if "dynamic" in ropes or "longrope" in ropes:
        return f"{name}'s rotary frequencies depend on how long the session has lasted"
    if any(isinstance(parameter, DTensor) for parameter in llm.parameters()):
        return "the LLM's weights are shared between devices"
    return None


@torch.no_grad()
def check_cache(llm: Any) -> None:
    """Compare the LLM reading frame by frame, as in generation, with its reading all at once.

    Raises:
        ValueError: they differ, or the LLM can't: it takes no such cache, or fills it in another way.
    """
    body, config, weight = llm_body(llm), text_config(llm), llm.get_input_embeddings().weight
    if weight.is_meta:
        return
    training = llm.training
    llm.eval()
    embeds_BTH = llm.get_input_embeddings()(torch.arange(4, device=weight.device)[None] + 4)
    steps: list[Tensor] = []

    def heads(hidden_BH: Tensor) -> tuple[Tensor, Tensor, None]:
        steps.append(hidden_BH)
        return hidden_BH, hidden_BH[:, None], None

    eager = "its hidden states are looked at after each frame"
    parts = FrameModel(lambda source, *_: source, body, heads, config, 0, 0, 1, False, why_eager=eager)
    try:
        decoder = FrameDecoder(parts, 1, 6, weight.device, GenerationConfig())
        for t in range(embeds_BTH.shape[1]):
            decoder.step(embeds_BTH[:, t])
        whole_BTH = body(inputs_embeds=embeds_BTH, use_cache=False).last_hidden_state
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"model.pretrained_llm: {type(llm).__name__} can't read frame by frame: {error}") from error
    llm.train(training)
    difference = (torch.stack(steps, 1).float() - whole_BTH.float()).norm() / whole_BTH.float().norm()
    # Rounding adds up over the layers: over 26 to 1e-5 in float32 and 4e-2 in bf16, to which a GPU may also round what
    # it multiplies in float32 (torch.set_float32_matmul_precision). A wrong reading is off by about 1.
    if not difference < 0.2:  # NaN is refused too
        raise ValueError(
            f"model.pretrained_llm: {type(llm).__name__} reads otherwise frame by frame than all at once: use another "
            "family, or another model.attn_implementation"
        )
