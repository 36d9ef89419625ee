"""The duplex model on several gloo processes against one process: outputs, losses, gradients, generation.

`LAYOUTS` are the columns of docs/parallel-families.md, which `hatch run test:parallel` writes.
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from s2s_model import DuplexS2SModel
from s2s_parallel.config import ParallelConfig
from s2s_parallel.fsdp import gathered
from s2s_parallel.mesh import MeshSizes, build_mesh
from s2s_parallel.parallelize import parallelize
from tests.s2s_model import families
from tests.s2s_model.builders import make_batch, model_config, slice_batch
from tests.s2s_model.processes import run_on_ranks

# Odd, so that frames divide by no number of peers; longer than the sliding windows of the small families.
ANSWERED = 12 * 1280  # samples of 80 ms frames that it answers by itself: longer than the small families' windows of 8
FRAMES = {1: (24, 17), 2: (24, 17), 4: (24, 17, 9, 13)}  # of the dialogues, by data parallel size
# float32 with sums in another order, in the worst of the families; a wrong gradient is off by a tenth or more.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Layout:
    """A mesh and how the model is laid out on it."""

    sizes: MeshSizes
    config: ParallelConfig = field(default_factory=ParallelConfig)


MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2}
# Families whose plan takes more than rows and columns, beside those of tests/s2s_model/families.py.
FAMILIES = families.FAMILIES | {
    "qwen3-moe": lambda: families.of_llama_shape("Qwen3MoeConfig", head_dim=8, **MIXTURE, moe_intermediate_size=16),
    "mixtral": lambda: families.of_llama_shape("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "gpt-oss": lambda: families.of_llama_shape("GptOssConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "apertus": lambda: families.of_llama_shape("ApertusConfig", tie_word_embeddings=False),
    "glm4": lambda: families.of_llama_shape("Glm4Config", head_dim=8, attention_bias=True),
    "starcoder2": lambda: families.of_llama_shape("Starcoder2Config", tie_word_embeddings=True),
    "cohere": lambda: families.of_llama_shape("CohereConfig", logit_scale=0.5),
    "nemotron": lambda: families.of_llama_shape("NemotronConfig"),
}

GATHERED = ParallelConfig(uneven_heads="gather")  # Gemma's small models have one key head
LAYOUTS = {
    "TP 2": Layout(MeshSizes(1, 2), replace(GATHERED, sequence_parallel=False)),
    "TP+SP 2": Layout(MeshSizes(1, 2), GATHERED),
    "FSDP2 2": Layout(MeshSizes(2, 1)),
    "CP 2": Layout(MeshSizes(1, context_parallel_size=2)),
    "TP+SP+FSDP2 2×2": Layout(MeshSizes(2, 2), GATHERED),
}


def build(llm: str, codec: str, **keys: Any) -> DuplexS2SModel:
    """The same weights on each process."""
    torch.manual_seed(0)
    return DuplexS2SModel(model_config(llm, codec, **keys))


def results(model: DuplexS2SModel, batch: Any, num_frames: int, num_replicas: int) -> dict[str, Any]:
    """What a process has to show of its dialogues: outputs, loss, gradients, and what the model says by itself."""
    model.train()
    sums = model(batch)
    loss = sums.objective(model.cfg) / num_frames
    (loss * num_replicas).backward()  # data parallelism takes the mean
    shown = {"loss": loss.detach()}
    shown |= {f"grad {n}": whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    model.eval()
    with torch.no_grad(), gathered(model):
        # As in training: frames are shared between peers where gradients are computed.
        with torch.enable_grad():
            inputs = model.prepare_inputs(batch)
            text, codes, user_text = model.heads(model.hidden_states(inputs))
        shown |= {"text logits": text.detach(), "code logits": codes.detach()}
        if user_text is not None:
            shown["user text logits"] = user_text.detach()
        heard, lens = batch["source_audio"][:, :ANSWERED], batch["source_audio_lens"].clamp(max=ANSWERED)
        answer = model.offline_inference(heard, lens, decode_audio=False)
        shown |= {"said text": answer["tokens_text"], "said codes": answer["tokens_audio"]}
    return shown


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, however it is shared."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def batches(num_replicas: int) -> list[Any]:
    """A batch for each data parallel rank: one of all dialogues, or a dialogue each."""
    together = make_batch(FRAMES[num_replicas])
    return [together] if num_replicas == 1 else [slice_batch(together, row) for row in range(num_replicas)]


def num_labels(num_replicas: int) -> int:
    """Frames with labels in all batches."""
    return sum(frames - 1 for frames in FRAMES[num_replicas])


def on_rank(rank: int, layouts: list[Layout], model: DuplexS2SModel) -> list[dict[str, Any]]:
    """The results of one process, a layout after the other."""
    shown = []
    for layout in layouts:
        mine = copy.deepcopy(model)
        mesh = build_mesh(layout.sizes, "cpu")
        parallelize(mine, mine.parts(), mesh, layout.config)
        dp = layout.sizes.data_parallel_size
        batch = batches(dp)[mesh["data_parallel"].get_local_rank()]
        shown.append(results(mine, batch, num_labels(dp), dp))
    return shown


def compare(layouts: list[Layout], model: DuplexS2SModel, folder: Path) -> list[float]:
    """The largest difference of each layout from one process, as a share of the largest value of its tensor.

    Raises:
        AssertionError: something is missing, or generation gives other tokens.
    """
    expected: dict[int, list[dict[str, Any]]] = {}
    for dp in {layout.sizes.data_parallel_size for layout in layouts}:
        alone = copy.deepcopy(model)
        expected[dp] = [results(alone, batch, num_labels(dp), 1) for batch in batches(dp)]
    world_size = layouts[0].sizes.world_size
    ranks = run_on_ranks(on_rank, folder, layouts, model, world_size=world_size)
    worst = []
    for index, layout in enumerate(layouts):
        dp, num_peers = layout.sizes.data_parallel_size, layout.sizes.num_peers
        errors = [
            _difference(shown[index], expected[dp][rank // num_peers], expected[dp][-1])
            for rank, shown in enumerate(ranks)
        ]
        worst.append(max(errors))
    return worst


def _difference(shown: dict[str, Any], expected: dict[str, Any], last: dict[str, Any]) -> float:
    """Gradients are those of all dialogues, which the last of the expected has summed up."""
    assert shown.keys() == expected.keys(), shown.keys() ^ expected.keys()
    worst = 0.0
    # A key's bias has no gradient, as softmax doesn't see it: what is left of it by rounding has no scale of its own.
    floor = 1e-4 * max(float(value.abs().max()) for name, value in last.items() if name.startswith("grad "))
    for name, value in shown.items():
        wanted = (last if name.startswith("grad ") else expected)[name]
        assert value.shape == wanted.shape, (name, value.shape, wanted.shape)
        if name.startswith("said"):
            assert torch.equal(value, wanted), f"{name} differs"
            continue
        error = float((value - wanted).abs().max() / wanted.abs().max().clamp(min=floor))
        assert error < TOLERANCE, f"{name} differs by {error:.1e} of its largest value"
        worst = max(worst, error)
    return worst
