"""The loss of a head without its logits: they are computed piece by piece, and so is their gradient, at once.

Logits of all frames would take more memory than a layer of the LLM, and most of a step's peak. What backward needs of
them are the gradients of the hidden states and of the head's weight, which are known as soon as a piece's loss is.

Shapes: `N` frames, `H` hidden, `K` groups of classes (codebooks; 1 for text), `C` classes of a group, `V` = K * C.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from s2s_parallel.forwards import is_wrapped, wrap_forward
from s2s_parallel.graph_capture import autocast_dtype
from s2s_parallel.mesh import TENSOR_PARALLEL

LOGITS_OF_A_PIECE = 2**26  # 128 MiB in bf16
Reduce = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def let_reduce(head: nn.Module) -> None:
    """Let `head(hidden, reduce)` return `reduce(hidden, weight, bias)`, in place; only linear layers are changed.

    Its own call is needed: FSDP gathers the weight for it.
    """
    if type(head) is nn.Linear:
        wrap_forward(head, _reduced)


def _reduced(forward: Any, hidden: Tensor, reduce: Reduce | None = None) -> Tensor:
    if reduce is None:
        logits: Tensor = forward(hidden)
        return logits
    head = forward.args[0]
    return reduce(hidden, head.weight, head.bias)


def can_reduce(head: nn.Module) -> bool:
    """Whether `head` takes a `reduce`: not if it has adapters, is shared by tensor parallel peers, or is in float16.

    In float16 gradients of sums overflow.
    """
    weight = getattr(head, "weight", None)
    if not is_wrapped(head, _reduced):
        return False
    if isinstance(weight, DTensor) and TENSOR_PARALLEL in (weight.device_mesh.mesh_dim_names or ()):
        return False
    return isinstance(weight, Tensor) and _compute_dtype(weight) != torch.float16


def linear_cross_entropy(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    *,
    labels_NK: Tensor,
    weights_NK: Tensor,
    scale: float = 1.0,
    cap: float = 0.0,
    compiled: bool = False,
) -> Tensor:
    """Sum of the weighted cross entropies of `linear(hidden, weight, bias)`, a float32 scalar.

    Args:
        hidden_NH: in float32 or bf16.
        weight_VH: of the head.
        bias_V: of the head, or None.
        labels_NK: int64 from 0 to C - 1.
        weights_NK: float32; 0 for frames that don't count.
        scale: what logits are multiplied by.
        cap: logits become `cap * tanh(logits / cap)`; 0: they don't.
        compiled: compile what is done to the logits; for GPUs.
    """
    dtype = _compute_dtype(hidden_NH)
    hidden_NH, weight_VH = hidden_NH.to(dtype), weight_VH.to(dtype)
    bias_V = None if bias_V is None else bias_V.to(dtype)
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, bias_V, labels_NK, weights_NK, scale, cap, compiled
    )
    return loss


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return autocast_dtype(tensor.device.type) or tensor.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        labels_NK: Tensor,
        weights_NK: Tensor,
        scale: float,
        cap: float,
        compiled: bool,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden_NH) if wants_hidden else None
        of_weight = torch.zeros_like(weight_VH) if wants_weight else None
        of_bias = torch.zeros_like(bias_V) if wants_bias and bias_V is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        losses = _losses(compiled)
        size = max(LOGITS_OF_A_PIECE // weight_VH.shape[0], 1)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for begin in range(0, len(hidden_NH), size):
                piece = slice(begin, begin + size)
                logits = linear(hidden_NH[piece], weight_VH, bias_V)
                loss, of_logits = losses(logits, labels_NK[piece], weights_NK[piece], scale, cap)
                del logits
                total += loss
                if of_hidden is not None:
                    torch.mm(of_logits, weight_VH, out=of_hidden[piece])
                if of_weight is not None:
                    of_weight.addmm_(of_logits.t(), hidden_NH[piece])
                if of_bias is not None:
                    of_bias += of_logits.sum(0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if x is None else _times(x, factor) for x in ctx.saved_tensors]
        return (*gradients, None, None, None, None, None)


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """A bf16 tensor times a float32 scalar that isn't rounded to bf16 first, which would scale all gradients alike."""
    return torch.mul(x, factor[None], out=torch.empty_like(x))


def losses_and_gradient(
    logits_NV: Tensor, labels_NK: Tensor, weights_NK: Tensor, scale: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Summed weighted losses, float32, and their gradient [N, V] in the logits' dtype."""
    raw_NKC = logits_NV.unflatten(1, (labels_NK.shape[1], -1)).float() * scale
    scores_NKC = cap * torch.tanh(raw_NKC / cap) if cap else raw_NKC
    norm_NK1 = scores_NKC.logsumexp(-1, keepdim=True)
    label_NK1 = scores_NKC.gather(-1, labels_NK[..., None])
    loss = ((norm_NK1 - label_NK1)[..., 0] * weights_NK).sum()
    is_label_NKC = torch.arange(scores_NKC.shape[-1], device=labels_NK.device) == labels_NK[..., None]
    gradient_NKC = ((scores_NKC - norm_NK1).exp() - is_label_NKC.float()) * weights_NK[..., None]
    if cap:
        gradient_NKC = gradient_NKC * (1 - (scores_NKC / cap).square())
    return loss, (gradient_NKC * scale).to(logits_NV.dtype).flatten(1)


def _losses(compiled: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    return _compiled_losses() if compiled else losses_and_gradient


@cache
def _compiled_losses() -> Callable[..., tuple[Tensor, Tensor]]:
    compiled: Any = torch.compile(losses_and_gradient)

    def call(logits_NV: Tensor, labels_NK: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        for tensor in (logits_NV, labels_NK):
            torch._dynamo.mark_static(tensor, 1)  # each head has a vocabulary of its own, and the frames vary
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        result: tuple[Tensor, Tensor] = compiled(logits_NV, labels_NK, *others)
        return result

    return call
