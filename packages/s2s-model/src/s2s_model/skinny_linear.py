"""Linear layers over a few rows, as in generation: those of one input are computed together.

They are bound by reading weights. A GPU's own products of few rows read at half the speed that it can, and each of an
input's layers (queries, keys and values; gate and up) waits for the one before.

Shapes: `K` the input's width, `N` a layer's outputs.
"""

import math
import operator
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn.functional import linear

MAX_ROWS = 32
MAX_WEIGHTS = 4  # of one launch
ALIGNMENT = 8  # weights are read in pieces of 16 bytes

_LINEAR = (linear, torch.ops.aten.linear, torch.ops.aten.linear.default)
_ARGUMENTS = ("input", "weight", "bias")


@torch.library.custom_op("s2s_model::skinny_linears", mutates_args=())
def skinny_linears(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    """Each weight's `linear` of the same input. On a GPU one kernel computes all, without gradients.

    Args:
        x: [..., K]; on a GPU 1 to `MAX_ROWS` rows in bf16 or fp16, and K a multiple of `ALIGNMENT`.
        weights: [N, K] each, in x's dtype; on a GPU contiguous, and `MAX_WEIGHTS` at most.
        biases: [N] or None for each weight.

    Returns:
        [..., N] for each weight, in x's dtype.
    """
    return [linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


@skinny_linears.register_kernel("cuda")
def _(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    from s2s_model.skinny_linear_triton import linears_cuda

    return linears_cuda(x, weights, biases)


@skinny_linears.register_fake
def _(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]


def has_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> bool:
    """Whether the GPU's kernel can compute `out = linear(x, weight, bias)`.

    Asking adds a guard to a graph in which the number of rows is a symbol.
    """
    tensors = [x, weight, out] if bias is None else [x, weight, bias, out]
    return (
        x.dtype in (torch.bfloat16, torch.float16)
        and all(each.is_cuda and each.dtype == x.dtype for each in tensors)  # autocast makes `out` another
        and not any(hasattr(each, "__tensor_flatten__") for each in tensors)  # DTensor and other wrappers
        and not out.requires_grad
        and weight.dim() == 2
        and weight.is_contiguous()
        and weight.shape[1] % ALIGNMENT == 0
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
        and 1 <= math.prod(x.shape[:-1]) <= MAX_ROWS
        and find_spec("triton") is not None
    )


def group_linears(graph_module: GraphModule, is_wanted: Callable[..., bool]) -> None:
    """Compute a graph's linear layers by `skinny_linears`, in place; those of one input together.

    A group stands where its first layer stood. A layer whose weight isn't known there begins another, and none extends
    over a node that may write into a tensor.

    Args:
        graph_module: as torch.compile gives it to a backend.
        is_wanted: whether to take a layer, of its input, weight, bias (or None) and result, as fake tensors.
    """
    graph = graph_module.graph
    place = {node: index for index, node in enumerate(graph.nodes)}
    groups: list[list[Node]] = []
    growing: dict[Node, list[Node]] = {}  # by input
    for node in place:
        if _is_linear(node) and is_wanted(*map(_example, (*_operands(node), node))):
            x, *others = _operands(node)
            group = growing.get(x)
            known = group is not None and all(place[other] < place[group[0]] for other in others if other is not None)
            if group is None or not known or len(group) == MAX_WEIGHTS:
                group = growing[x] = []
                groups.append(group)
            group.append(node)
        elif _may_write(node):
            growing.clear()
    for group in groups:
        _replace(graph, group)
    graph.lint()
    graph_module.recompile()


def _is_linear(node: Node) -> bool:
    """Whether it is one whose tensors all have examples."""
    if node.op != "call_function" or node.target not in _LINEAR:
        return False
    return all(isinstance(_example(each), Tensor) for each in (*_operands(node), node) if each is not None)


def _operands(linear_node: Node) -> tuple[Node, Node, Node | None]:
    """Its input, weight and bias."""
    given: dict[str, Any] = dict(zip(_ARGUMENTS, linear_node.args, strict=False)) | linear_node.kwargs
    return given["input"], given["weight"], given.get("bias")


def _example(node: Node | None) -> Any:
    return None if node is None else node.meta.get("example_value")


def _may_write(node: Node) -> bool:
    """Whether a node may change a tensor that is there already; some that don't count too."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module" or isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    if isinstance(node.target, torch._ops.OpOverloadPacket):
        return any(getattr(node.target, name)._schema.is_mutable for name in node.target.overloads())
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") if not name.endswith("__") else name.startswith(("__i", "__set"))
    of_operator = getattr(node.target, "__module__", "") == "_operator" and name.startswith(("i", "set", "del"))
    by_argument = "out" in node.kwargs or bool(node.kwargs.get("inplace")) or any(each is True for each in node.args)
    return in_place or of_operator or by_argument


def _replace(graph: Graph, group: list[Node]) -> None:
    xs, weights, biases = map(list, zip(*map(_operands, group), strict=True))
    with graph.inserting_before(group[0]):
        together = graph.call_function(torch.ops.s2s_model.skinny_linears.default, (xs[0], weights, biases))
        outs = [graph.call_function(operator.getitem, (together, index)) for index in range(len(group))]
    for node, out in zip(group, outs, strict=True):
        node.replace_all_uses_with(out, propagate_meta=True)
        graph.erase_node(node)
