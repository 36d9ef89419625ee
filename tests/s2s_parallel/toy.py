"""A small language model that trains on any mesh, and on one process; the same data everywhere."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_parallel.strategy import MeshStrategy

VOCABULARY, HIDDEN, INNER = 13, 6, 10  # 10 rows of 4 devices: shares of unequal size


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x + change


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.frozen = nn.Linear(HIDDEN, HIDDEN)
        self.frozen.requires_grad_(False)
        self.gain = nn.Parameter(torch.ones(1))
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.gain * (x + self.scale * self.frozen(x)))
        return logits


class Toy(LightningModule):
    """Embedding, two blocks and a tied head; one part is frozen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.net = Net()
        self.losses: list[float] = []
        self.seen: dict[str, Any] = {}

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh is None:
            return
        if mesh["tensor_parallel"].size() > 1:
            for layer in self.net.layers:
                plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
                parallelize_module(layer, mesh["tensor_parallel"], plan)
        names = mesh.mesh_dim_names or ()
        if mesh["data_parallel"].size() > 1:
            mesh_dp = mesh["replicate", "shard"] if "replicate" in names else mesh["data_parallel"]
            for layer in self.net.layers:
                fully_shard(layer, mesh=mesh_dp)
            fully_shard(self.net, mesh=mesh_dp)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.global_step)
        tokens = torch.randint(VOCABULARY, (3, 5), generator=generator)
        loss = nn.functional.cross_entropy(self.net(tokens).flatten(0, 1), tokens.roll(-1).flatten())
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", 1.0 / (1 + self.global_step), batch_size=1)

    def configure_optimizers(self) -> Any:
        trained = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        vectors = [p for name, p in trained.items() if "norm" in name or "bias" in name or name == "gain"]
        matrices = [p for name, p in trained.items() if not any(p is vector for vector in vectors)]
        groups = [
            {"params": matrices, "lr": 0.01, "weight_decay": 0.1},
            {"params": vectors, "lr": 0.03, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, foreach=False)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.2 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = {
            "groups": len(checkpoint["optimizer_states"][0]["param_groups"]),
            "schedulers": len(checkpoint["lr_schedulers"]),
            "names": sorted(checkpoint["state_dict"]),
        }


class Counter(Callback):
    """A callback with a state."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, *args: object) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class StatefulLoader(DataLoader):  # type: ignore[type-arg]
    """Counts what it gave; Lightning keeps its state."""

    def __init__(self) -> None:
        super().__init__(torch.arange(1000), batch_size=1, num_workers=0)  # type: ignore[arg-type]  # it can be indexed
        self.given = 0

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def make_trainer(mesh: dict[str, Any] | str | None, max_steps: int, **options: Any) -> Trainer:
    """A Trainer for a mesh (arguments of MeshStrategy), for "ddp" on 2 processes, or for one process."""
    seed_everything(1, verbose=False)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    shared: dict[str, Any] = {"accelerator": "cpu", "max_steps": max_steps, "use_distributed_sampler": False, **quiet}
    shared |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "inference_mode": False, **options}
    if isinstance(mesh, dict):
        sizes = (mesh.get("data_parallel_size", 1), mesh.get("tensor_parallel_size", 1))
        strategy: Any = mesh.get("strategy") or MeshStrategy(**mesh)
        return Trainer(strategy=strategy, devices=sizes[0] * sizes[1], plugins=[AtomicCheckpointIO()], **shared)
    devices = 2 if mesh == "ddp" else 1
    return Trainer(strategy=mesh or "auto", devices=devices, plugins=[AtomicCheckpointIO()], **shared)


def train(
    mesh: dict[str, Any] | str | None, max_steps: int, save_to: Path | None = None, load_from: Path | None = None
) -> dict[str, Any]:
    """Train to `max_steps`; what a user would look at afterwards."""
    model, counter, loader = Toy(), Counter(), StatefulLoader()
    trainer = make_trainer(mesh, max_steps, callbacks=[counter, *([SaveAtEnd(save_to)] if save_to else [])])
    trainer.fit(model, loader, ckpt_path=load_from)
    return {
        "losses": model.losses,
        "rates": [group["lr"] for group in trainer.optimizers[0].param_groups],
        "count": counter.count,
        "given": loader.given,
        "tied": model.net.lm_head.weight is model.net.embed_tokens.weight,
        "seen": model.seen,
        "up": local_shape(model.net.get_parameter("layers.0.up.weight")),
    }


def local_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of this process's part."""
    return tuple(parameter.to_local().shape if isinstance(parameter, DTensor) else parameter.shape)


class SaveAtEnd(Callback):
    """Saves at the last step, as ModelCheckpoint would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.path)
