"""One step of generation: the next frame of several sessions, from a cache of fixed size.

Shapes: `B` sessions, `T` frames (80 ms), `M` frames of the cache's room, `K` codebooks, `C` codes of one, `V` text
vocabulary, `H` hidden.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s2s_model.compiled_decoding import compiled_blocks
from s2s_model.cuda_graphs import WARM_UP, GraphedFunction
from s2s_model.frame_cache import make_cache, room_for
from s2s_model.sampling import GenerationConfig, choose, unchanged


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
    blocks: Sequence[nn.Module] = ()  # the LLM's layers; needed to compile them
    why_eager: str | None = None  # why steps can't be captured as a CUDA graph
    weights: Callable[[], Hashable] = tuple  # where they lie; a graph reads from there


class FrameDecoder:
    """Predicts frame after frame of `batch_size` sessions from the user's frames and what it predicted before.

    The LLM's cache holds `max_frames` frames. A session that is reset leaves its frames in the cache, masked, until
    their room is needed. On a GPU a step is replayed as one CUDA graph; the weights may change, but not move.

    Args:
        model: the parts of the model.
        batch_size: sessions that advance together (B).
        max_frames: how long a session may last without a reset.
        device: where the model is.
        config: how tokens are chosen.
        generator: where draws come from; None is torch's global one.
        compile: torch.compile the LLM's layers; the first steps are then slow.

    Attributes:
        generator: as given.
        room: frames of all sessions that the cache holds.
    """

    @torch.inference_mode(False)  # what is kept must be of use within and without
    def __init__(
        self,
        model: FrameModel,
        batch_size: int,
        max_frames: int,
        device: torch.device,
        config: GenerationConfig,
        generator: torch.Generator | None = None,
        compile: bool = False,
    ) -> None:
        self._model = model
        self._config = config
        self.generator = generator
        self._compile = compile
        self._max_frames = max_frames
        self._used = 0  # frames in the cache
        self._began = [0] * batch_size  # the cache's frame at which each session began
        self._used_device = torch.zeros((), dtype=torch.long, device=device)  # both, on the device
        self._began_B1 = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
        self._places = torch.arange(room_for(max_frames), device=device)
        self._cache, self._is_static = make_cache(model.llm_config, max_frames, self._used_device)
        self._last = self._before_first(batch_size, device)
        growing = f"{type(model.llm_config).__name__}'s LLM keeps more than keys and values"
        why_eager = model.why_eager if self._is_static else growing
        # transformers looks at masks to leave them out, if it isn't captured.
        self._advance = GraphedFunction(self._predict, device, generator, why_eager, may_wait=True)
        self._num_steps = 0  # in all
        self.room = batch_size * room_for(max_frames)

    def _before_first(self, batch_size: int, device: torch.device) -> Frame:
        pad_B = torch.full((batch_size,), self._model.pad_id, device=device)
        codes_BK = torch.full((batch_size, self._model.num_codebooks), self._model.delay_id, device=device)
        return Frame(pad_B, codes_BK, pad_B.clone() if self._model.writes_user_text else None)

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self, source_BH: Tensor) -> Frame:
        """Predict the frame in which the user's encoded frame [B, H] is heard.

        Raises:
            ValueError: a session is as long as the cache; it has to be reset.
        """
        self._make_room()
        with self._compiled():
            self._advance(source_BH)
        self._used += 1
        self._num_steps += 1
        return Frame(*(None if value is None else value.clone() for value in self._last))  # type: ignore[arg-type]

    def warm_up(self, source_BH: Tensor) -> None:
        """Compile and capture with any frame [B, H], before the first session begins. No draw is used up."""
        with unchanged(self.generator, source_BH.device):
            for _ in range(WARM_UP + 1):
                self.step(source_BH)
                self.reset(range(len(self._began)))

    def _compiled(self) -> AbstractContextManager[None]:
        """The layers compiled, where Python will run them; not in the first step, which makes the cache's tensors."""
        if not self._compile or not self._is_static or not self._num_steps or self._advance.is_captured:
            return nullcontext()
        return compiled_blocks(self._model.blocks, self._cache, self._model.llm_config)

    def _predict(self, source_BH: Tensor) -> None:
        """A step of tensors alone: from the last frame to this one, in place."""
        last = self._last
        user_text_B1 = None if last.user_text_B is None else last.user_text_B[:, None]
        embeds_B1H = self._model.embed(source_BH[:, None], last.text_B[:, None], last.codes_BK[:, None], user_text_B1)
        # The mask is needed from the start: without one, flash attention reads the cache's empty frames too.
        where = self._mask_and_positions() if self._is_static else {}
        hidden_BH: Tensor = self._model.body(
            inputs_embeds=embeds_B1H, past_key_values=self._cache, use_cache=True, **where
        ).last_hidden_state[:, 0]
        text_BV, codes_BKC, user_text_BV = self._model.heads(hidden_BH)
        last.text_B.copy_(choose(text_BV, self._config.text, self.generator))
        last.codes_BK.copy_(choose(codes_BKC, self._config.audio, self.generator))
        if user_text_BV is not None and last.user_text_B is not None:
            last.user_text_B.copy_(choose(user_text_BV, self._config.user_text, self.generator))
        self._used_device.add_(1)

    def replace_last(self, rows: Sequence[int], text: int, code: int) -> None:
        """Let these sessions go on as if their last frame had been `text` and `code` in every codebook."""
        for row in rows:
            self._last.text_B[row] = text
            self._last.codes_BK[row] = code

    @torch.inference_mode(False)
    def reset(self, rows: Sequence[int]) -> None:
        """Let these sessions begin anew; the others go on.

        Raises:
            ValueError: the LLM keeps a recurrent state, which can't be cleared for some sessions alone.
        """
        if len(rows) == len(self._began):
            self._clear_cache()
            self._set_used(0)
        elif not self._is_static:
            raise ValueError(
                f"{type(self._model.llm_config).__name__}'s LLM keeps more than keys and values: reset all sessions of "
                "a batch together, or open one batch a session"
            )
        else:
            self._clear_rows(rows)
        first = self._before_first(len(self._began), self._last.text_B.device)
        chosen = set(rows)
        self._begin([self._used if row in chosen else began for row, began in enumerate(self._began)])
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
        mask_BM = (self._places >= self._began_B1) & (self._places <= self._used_device)
        return {"attention_mask": mask_BM, "position_ids": self._used_device - self._began_B1}

    def _clear_cache(self) -> None:
        if not self._is_static:
            self._cache, _ = make_cache(self._model.llm_config, self._max_frames, self._used_device)
            return
        for layer in self._cache.layers:
            if layer.is_initialized:  # a NaN would count even where it is masked
                layer.keys.zero_()
                layer.values.zero_()

    def _clear_rows(self, rows: Sequence[int]) -> None:
        layers = [layer for layer in self._cache.layers if layer.is_initialized]
        frames = [kept[row] for layer in layers for kept in (layer.keys, layer.values) for row in rows]
        if frames:
            torch._foreach_zero_(frames)

    def _set_used(self, used: int) -> None:
        self._used = used
        self._used_device.fill_(used)

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
        self._set_used(kept)
        self._begin([began - oldest for began in self._began])
