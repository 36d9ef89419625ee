"""What autograd keeps for backward, measured on tensors without data.

A forward pass on fake tensors (torch's FakeTensorMode) does all but the arithmetic: shapes and dtypes are those of a
real one, whatever the family of the model, and no memory is taken.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s2s_parallel.estimate import BlockActivations

_PRODUCTS = {F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm, torch.addmm}


class SavedActivations:
    """Adds up the storages that autograd saves, each once, by where they are saved first.

    Args:
        blocks: the repeated layers; their children with matrices count as attention or MLP.
        parameters: what isn't counted.
    """

    def __init__(self, blocks: Sequence[nn.Module], parameters: Iterable[nn.Parameter]) -> None:
        self._blocks = blocks
        self._known: dict[int, Any] = {}  # storages that are counted or not to be; kept, so that no address is reused
        for parameter in parameters:
            self._is_new(parameter)
        self._counts = [dict.fromkeys(("input", "residual", "gathered", "inside", "products", "outputs"), 0)
                        for _ in blocks]  # fmt: skip
        self._shared: dict[int, Any] = {}  # positions and masks, the same for every block
        self._block: int | None = None
        self._inside = False
        self._read: set[int] = set()  # storages that the running attention or MLP was called with
        self._made: dict[int, Any] = {}  # storages of matrix products of the running attention or MLP
        self.other = 0

    @property
    def blocks(self) -> tuple[BlockActivations, ...]:
        """The bytes of each block."""
        return tuple(BlockActivations(**count) for count in self._counts)

    @contextmanager
    def measuring(self, length: int | None = None) -> Iterator[None]:
        """Count what is saved inside this; `length` as in `without_data`."""
        handles = [handle for index, block in enumerate(self._blocks) for handle in self._watch(index, block)]
        try:
            with (
                torch.autograd.graph.saved_tensors_hooks(self._save, lambda saved: saved),
                without_data(self._product, length),
            ):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, index: int, block: nn.Module) -> Iterator[Any]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._block = index
            tensors = _tensors((args, kwargs))
            self._counts[index]["input"] = tensors[0].nbytes
            self._shared.update((_key(shared), shared.untyped_storage()) for shared in tensors[1:])

        def leave(*_: Any) -> None:
            self._block = None

        yield block.register_forward_pre_hook(enter, with_kwargs=True)
        yield block.register_forward_hook(leave)
        for child in block.children():
            if any(parameter.ndim >= 2 for parameter in child.parameters()):
                yield child.register_forward_pre_hook(self._enter_child, with_kwargs=True)
                yield child.register_forward_hook(self._leave_child)

    def _enter_child(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self._inside, self._made = True, {}
        self._read = {_key(tensor) for tensor in _tensors((args, kwargs))}

    def _leave_child(self, _: nn.Module, __: Any, output: Any) -> None:
        self._inside = False
        given = {_key(tensor) for tensor in _tensors(output)}
        if self._block is not None:
            for key, storage in self._made.items():
                self._counts[self._block]["outputs" if key in given else "products"] += storage.nbytes()
        self._made = {}

    def _product(self, output: Tensor) -> None:
        if self._inside:
            self._made[_key(output)] = output.untyped_storage()

    def _save(self, tensor: Tensor) -> Tensor:
        if self._is_new(tensor):
            size = tensor.untyped_storage().nbytes()
            if self._block is None or _key(tensor) in self._shared:
                self.other += size
            else:
                where = "residual" if not self._inside else "gathered" if _key(tensor) in self._read else "inside"
                self._counts[self._block][where] += size
        return tensor

    def _is_new(self, tensor: Tensor) -> bool:
        key = _key(tensor)
        if key in self._known:
            return False
        self._known[key] = tensor.untyped_storage()
        return True


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside it have at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._live and not _shares(storage, (args, kwargs)):
                self._live[key] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, key, None)
        self.peak = max(self.peak, sum(self._live.values()))
        return output


class _Instead(TorchFunctionMode):
    """Does what tensors without data can't, and what a GPU does otherwise than a CPU."""

    def __init__(self, product: Callable[[Tensor], None], length: int | None) -> None:
        super().__init__()
        self._product, self._length = product, length

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            output = _attend(*args, **kwargs)
        elif func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0].flatten(0, args[1].ndim - 1).clone()  # every frame is valid
        elif func is Tensor.item and self._length is not None:
            return self._length
        elif func is torch.rand and args and args[0] == []:  # Whisper draws whether it leaves a layer out: it doesn't
            return 1.0
        elif func is Tensor.numpy:  # features that are computed outside torch
            return np.zeros(args[0].shape, dtype=str(args[0].dtype).removeprefix("torch."))
        else:
            output = func(*args, **kwargs)
        if func in _PRODUCTS or func is F.scaled_dot_product_attention:
            self._product(output)
        return output


@contextmanager
def without_data(product: Callable[[Tensor], None] = lambda output: None, length: int | None = None) -> Iterator[None]:
    """Inside this, a forward on fake tensors goes the way that a GPU's goes.

    `product` is given the results of matrix products; `length` is what lengths are, where they are asked for.
    """
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    # It looks at positions for the begin of a second dialogue; where it can't look it makes a mask of them all.
    found = getattr(masking_utils, name, None)
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        with _Instead(product, length):
            yield
    finally:
        setattr(masking_utils, name, found)


class _FusedAttention(torch.autograd.Function):
    """Keeps what a GPU's fused kernel keeps: its inputs, its output and a float32 sum for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        B, heads, T, _ = query.shape
        output = query.new_empty(B, T, heads, value.shape[-1]).transpose(1, 2)  # kernels write frame by frame
        ctx.save_for_backward(query, key, value, mask, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return tuple(None if x is None or not x.is_floating_point() else x.new_empty(x.shape)
                     for x in ctx.saved_tensors[:4])  # fmt: skip


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    output: Tensor = _FusedAttention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return output


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _shares(storage: Any, tree: Any) -> bool:
    return any(_key(tensor) == storage._cdata for tensor in _tensors(tree))
