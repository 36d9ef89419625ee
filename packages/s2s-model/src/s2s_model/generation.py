"""Frame-by-frame generation with a cache of fixed size, for several sessions at once.

Shapes: `B` sessions, `T` frames (80 ms), `K` codebooks, `C` codes of one, `V` text vocabulary, `H` hidden.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2s_model.llm import llm_body, text_config
from s2s_model.sampling import GenerationConfig, choose


class Generated(NamedTuple):
    """What the agent wrote and said, control tokens included."""

    text_BT: Tensor  # int64
    codes_BTK: Tensor  # int64, as predicted: delay_speech_channel_by - 1 frames behind the codec's own grid
    user_text_BT: Tensor | None = None  # int64, what the user said, where the model writes that


class Frame(NamedTuple):
    """The tokens of one frame of each session."""

    text_B: Tensor
    codes_BK: Tensor
    user_text_B: Tensor | None


class FrameModel(NamedTuple):
    """The parts of the model that one step of generation needs."""

    embed: Callable[..., Tensor]  # source [B,T,H], text [B,T], codes [B,T,K], user text [B,T] or None -> [B,T,H]
    body: Callable[..., Any]  # the LLM without its heads, Hugging Face's calling convention
    heads: Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]  # hidden [B, H] -> logits of the three channels
    llm_config: Any  # the LLM's transformers config
    pad_id: int  # what stands before the first frame of both text channels
    delay_id: int  # what stands before the first frame of the codes
    num_codebooks: int
    writes_user_text: bool


class FrameDecoder:
    """Predicts frame after frame of `batch_size` sessions from the user's frames and what it predicted before.

    The LLM's cache holds `max_frames` frames. A session that is reset leaves its frames in the cache, masked, until
    their room is needed.

    Args:
        model: the parts of the model.
        batch_size: sessions that advance together (B).
        max_frames: how long a session may last without a reset.
        device: where the model is.
        config: how tokens are chosen.
        generator: where draws come from; None is torch's global one.
    """

    def __init__(
        self,
        model: FrameModel,
        batch_size: int,
        max_frames: int,
        device: torch.device,
        config: GenerationConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        self._model = model
        self._config = config
        self._generator = generator
        self._max_frames = max_frames
        self._cache, self._is_static = _make_cache(model.llm_config, max_frames)
        self._used = 0  # frames in the cache
        self._began = [0] * batch_size  # the cache's frame at which each session began
        self._began_B1 = torch.zeros(batch_size, 1, dtype=torch.long, device=device)  # the same, on the device
        self._places = torch.arange(max_frames, device=device)
        self._last = self._before_first(batch_size, device)

    def _before_first(self, batch_size: int, device: torch.device) -> Frame:
        pad_B = torch.full((batch_size,), self._model.pad_id, device=device)
        codes_BK = torch.full((batch_size, self._model.num_codebooks), self._model.delay_id, device=device)
        return Frame(pad_B, codes_BK, pad_B.clone() if self._model.writes_user_text else None)

    @torch.no_grad()
    def step(self, source_BH: Tensor) -> Frame:
        """Predict the frame in which the user's encoded frame [B, H] is heard.

        Raises:
            ValueError: a session is as long as the cache; it has to be reset.
        """
        self._make_room()
        last = self._last
        user_text_B1 = None if last.user_text_B is None else last.user_text_B[:, None]
        embeds_B1H = self._model.embed(source_BH[:, None], last.text_B[:, None], last.codes_BK[:, None], user_text_B1)
        # The mask is needed from the start: without one, flash attention reads the cache's empty frames too.
        where = self._mask_and_positions() if self._is_static else {}
        hidden_BH: Tensor = self._model.body(
            inputs_embeds=embeds_B1H, past_key_values=self._cache, use_cache=True, **where
        ).last_hidden_state[:, 0]
        text_BV, codes_BKC, user_text_BV = self._model.heads(hidden_BH)
        self._used += 1
        self._last = Frame(
            choose(text_BV, self._config.text, self._generator),
            choose(codes_BKC, self._config.audio, self._generator),
            None if user_text_BV is None else choose(user_text_BV, self._config.user_text, self._generator),
        )
        return self._last

    def replace_last(self, rows: Sequence[int], text: int, code: int) -> None:
        """Let these sessions go on as if their last frame had been `text` and `code` in every codebook."""
        for row in rows:
            self._last.text_B[row] = text
            self._last.codes_BK[row] = code

    def reset(self, rows: Sequence[int]) -> None:
        """Let these sessions begin anew; the others go on.

        Raises:
            ValueError: the LLM keeps a recurrent state, which can't be cleared for some sessions alone.
        """
        if len(rows) == len(self._began):
            self._cache, self._is_static = _make_cache(self._model.llm_config, self._max_frames)
            self._used = 0
        elif not self._is_static:
            raise ValueError(
                f"{type(self._model.llm_config).__name__}'s LLM keeps more than keys and values: reset all sessions of "
                "a batch together, or open one batch a session"
            )
        first = self._before_first(len(self._began), self._last.text_B.device)
        self._begin([self._used if row in rows else began for row, began in enumerate(self._began)])
        for row in rows:
            for now, new in zip(self._last, first, strict=True):
                if now is not None and new is not None:
                    now[row] = new[row]

    def check_room(self, num_frames: int, reserve: int) -> None:
        """Raise ValueError if a session can't last so many frames longer, and `reserve` after that."""
        most = self._max_frames - reserve
        full = [row for row, began in enumerate(self._began) if self._used - began + num_frames > most]
        if full:
            raise ValueError(
                f"session {', '.join(map(str, full))} has lasted {self._used - self._began[full[0]]} frames and would "
                f"get {num_frames} more, but was opened for {most}: reset it, or open it with a longer max_duration_s"
            )

    def _mask_and_positions(self) -> dict[str, Tensor]:
        mask_BT = (self._places >= self._began_B1) & (self._places <= self._used)
        return {"attention_mask": mask_BT, "position_ids": self._used - self._began_B1}

    def _begin(self, began: list[int]) -> None:
        self._began = began
        self._began_B1.copy_(torch.tensor(began)[:, None])

    def _make_room(self) -> None:
        """Drop what lies in the cache before the oldest session, once it is full."""
        if self._used < self._max_frames:
            return
        oldest = min(self._began)
        if oldest == 0:
            full = [row for row, began in enumerate(self._began) if began == 0]
            raise ValueError(
                f"session {', '.join(map(str, full))} has lasted {self._max_frames} frames, the most it was opened "
                "for: reset it, or open it with a longer max_duration_s"
            )
        kept = self._used - oldest
        for layer in self._cache.layers:
            layer.keys[:, :, :kept] = layer.keys[:, :, oldest : self._used].clone()
            layer.values[:, :, :kept] = layer.values[:, :, oldest : self._used].clone()
            layer.cumulative_length.fill_(kept)
        self._used = kept
        self._begin([began - oldest for began in self._began])


def _make_cache(llm_config: Any, max_frames: int) -> tuple[Any, bool]:
    """A cache of fixed size; of growing size for LLMs that keep more than keys and values (then False).

    Layers with a sliding window keep all frames too: the window is in their mask, and sessions of a batch may then
    begin at different frames.
    """
    from transformers import DynamicCache, StaticCache
    from transformers.cache_utils import Cache, StaticLayer

    layers = StaticCache(config=llm_config, max_cache_len=max_frames).layers
    if all(isinstance(layer, StaticLayer) for layer in layers):
        return Cache(layers=[_static_layer(max_frames) for _ in layers]), True
    return DynamicCache(config=llm_config), False


def _static_layer(max_frames: int) -> Any:
    from transformers.cache_utils import StaticLayer

    class OneDtypeLayer(StaticLayer):
        """Keeps values in the keys' dtype: under autocast keys leave the rotary embedding in float32, values don't."""

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().update(key_states, value_states.to(key_states.dtype), *args, **kwargs)

    return OneDtypeLayer(max_cache_len=max_frames)


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

    parts = FrameModel(lambda source, *_: source, body, heads, config, 0, 0, 1, False)
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


@torch.no_grad()
def generate(
    model: FrameModel, source_BTH: Tensor, config: GenerationConfig, generator: torch.Generator | None = None
) -> Generated:
    """Predict text and codes at each frame from the user's frames up to it and from what was predicted before."""
    B, T, _ = source_BTH.shape
    decoder = FrameDecoder(model, B, max(T, 1), source_BTH.device, config, generator)
    text_BT = torch.empty(B, T, dtype=torch.long, device=source_BTH.device)
    codes_BTK = text_BT[..., None].repeat(1, 1, model.num_codebooks)
    user_text_BT = torch.empty_like(text_BT) if model.writes_user_text else None
    for t in range(T):
        frame = decoder.step(source_BTH[:, t])
        text_BT[:, t], codes_BTK[:, t] = frame.text_B, frame.codes_BK
        if user_text_BT is not None and frame.user_text_B is not None:
            user_text_BT[:, t] = frame.user_text_B
    return Generated(text_BT, codes_BTK, user_text_BT)
