"""AdamW whose step is one kernel on a GPU: all weights of a group at the speed of its memory.

Torch's fused AdamW launches a kernel for every 320 pieces of weights, each of which ends with most of the GPU idle. It
also writes gradients back where it clips them, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adam import adam

from s2s_model.weight_tables import WeightTable, WeightTables
from s2s_parallel.gradients import local_parts


class AdamW(torch.optim.AdamW):
    """Computes what torch's fused AdamW does, up to rounding, and keeps the same state: either reads the other's.

    Of sharded weights each process changes its own part, without DTensor's cost of each operation. Weights that are on
    a CPU or laid out with gaps are left to torch's. Unlike torch's it leaves the gradients as they are where
    `grad_scale` divides them.

    Args:
        params: weights, or groups of them.
        lr: learning rate.
        betas: of the averages of the gradient and its square.
        eps: added to the root of the latter.
        weight_decay: share of a weight, times `lr`, that is taken off in each step.
        fused: for configs written for torch's; there is no other way.

    Raises:
        ValueError: `fused` is False, or an argument is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        fused: bool = True,
    ) -> None:
        if not fused:
            raise ValueError("s2s_model.adamw.AdamW is fused: leave `fused` out, or use torch.optim.AdamW")
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)
        self._tables: dict[int, WeightTables] = {}

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Change the weights by their gradients; what torch's gradient scaler asks for is done on the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            lists: list[list[Tensor]] = [[] for _ in range(6)]
            self._init_group(group, *lists)  # type: ignore[no-untyped-call]
            lists = [local_parts(tensors) for tensors in lists]
            params, gradients, means, squares, _, steps = lists
            tables = self._tables.setdefault(index, WeightTables())
            on_gpu = bool(params) and params[0].is_cuda
            table = tables.find(params, gradients, means, squares, steps=steps) if on_gpu else None
            if table is not None:
                self._step_at_once(table, group, steps)
            elif params:
                self._leave_to_torch(group, lists)
        return loss

    def _step_at_once(self, table: WeightTable, group: dict[str, Any], steps: list[Tensor]) -> None:
        from s2s_model.adamw_triton import update

        torch._foreach_add_(steps, 1)
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        update(table, group, scale, found_inf)
        if found_inf is not None:
            torch._foreach_sub_(steps, [found_inf] * len(steps))

    def _leave_to_torch(self, group: dict[str, Any], lists: list[list[Tensor]]) -> None:
        beta1, beta2 = group["betas"]
        options: dict[str, Any] = {key: group[key] for key in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        asked = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
        torchs: Any = adam
        torchs(*lists, fused=True, beta1=beta1, beta2=beta2, decoupled_weight_decay=True, **options, **asked)

    def __getstate__(self) -> dict[str, Any]:
        """Tables are of addresses, which mean nothing elsewhere."""
        state: dict[str, Any] = super().__getstate__()
        return state | {"_tables": {}}
