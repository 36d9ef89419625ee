"""What every LLM family has to do inside the duplex model; each check raises AssertionError where it doesn't.

`CHECKS` are the columns of docs/llm-families.md, which `hatch run test:families` writes.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from s2s_model import DuplexS2SModel
from s2s_model.lora import merge_lora
from tests.s2s_model.builders import make_batch, make_codec, model_config
from tests.s2s_model.families import make_family

FRAMES = 24  # three times the sliding windows of the small families
FRAME_SAMPLES = 1280


def build(family: str, codec: str, folder: Path, **keys: object) -> DuplexS2SModel:
    """The duplex model around a small LLM of the family."""
    torch.manual_seed(0)
    return DuplexS2SModel(model_config(make_family(family, folder / family), codec, **keys)).eval()


def train(model: DuplexS2SModel, folder: Path) -> None:
    """Thirty steps on a dialogue take a quarter off its loss, every parameter moves, ties stay."""
    before = copy.deepcopy(model.state_dict())
    losses = take_steps(model, 30)
    assert losses[-1] < 0.75 * losses[0], losses
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    still = {name for name, _ in model.named_parameters()} - set(moved)
    assert not still, still
    embedding, head = model.llm.get_input_embeddings().weight, model.llm.get_output_embeddings().weight
    assert (embedding is head) == model.llm.config.tie_word_embeddings


def decode(model: DuplexS2SModel, folder: Path) -> None:
    """Frame by frame with the static cache gives what the LLM gives for the whole sequence at once."""
    source_BTH = encoded(model)
    generated = model.generate(source_BTH)
    text, codes = teacher_forced(model, source_BTH, generated.text_BT, generated.codes_BTK)
    assert torch.equal(generated.text_BT, text)
    assert torch.equal(generated.codes_BTK, codes)
    assert len(codes.unique()) > 3


def lora(model: DuplexS2SModel, folder: Path) -> None:
    """Adapters change nothing before training, alone change in the LLM by it, and merge into its weights."""
    config = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    keys = {"pretrained_llm": model.cfg.pretrained_llm, "lora": config}
    torch.manual_seed(0)
    adapted = DuplexS2SModel(model_config(model.cfg.pretrained_llm, model.cfg.pretrained_audio_codec, **keys)).eval()
    weights = {name.replace(".base_layer", ""): name for name in adapted.state_dict()}
    adapted.load_state_dict({weights[name]: value for name, value in model.state_dict().items()}, strict=False)
    assert torch.equal(logits(adapted), logits(model))
    before = copy.deepcopy(adapted.llm.state_dict())
    losses = take_steps(adapted, 30)
    assert losses[-1] < 0.75 * losses[0], losses
    moved = {name for name, value in adapted.llm.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".lora_" in name}
    expected = logits(adapted.eval())
    merge_lora(adapted.llm)
    assert set(adapted.state_dict()) == set(model.state_dict())
    # float32: x (W + BA) instead of x W + x B A
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-4)


def export(model: DuplexS2SModel, folder: Path) -> None:
    """A saved model loads to the same logits, bit for bit, ties included."""
    model.save_pretrained(folder / "export")
    loaded = DuplexS2SModel.from_pretrained(folder / "export")
    assert torch.equal(logits(loaded), logits(model))
    ties = [m.llm.get_input_embeddings().weight is m.llm.get_output_embeddings().weight for m in (model, loaded)]
    assert ties[0] == ties[1]


def stream(model: DuplexS2SModel, folder: Path) -> None:
    """A live session of two, one of them reset on the way, gives offline inference's tokens and codes."""
    audio_BS = make_batch((FRAMES, FRAMES))["source_audio"]
    session = model.open_session(batch_size=2)
    outputs = []
    for t in range(FRAMES):
        if t == 9:
            session.reset([1])
        outputs.append(session.push(audio_BS[:, t * FRAME_SAMPLES : (t + 1) * FRAME_SAMPLES]))
    outputs.append(session.flush())
    tokens = torch.cat([output.tokens_BN for output in outputs], dim=1)
    codes = torch.cat([output.codes_BNK for output in outputs], dim=1)
    for row, begin in ((0, 0), (1, 9)):
        heard_BS = audio_BS[row : row + 1, begin * FRAME_SAMPLES :]
        expected = model.offline_inference(heard_BS, torch.tensor([heard_BS.shape[1]]), decode_audio=False)
        assert torch.equal(tokens[row, begin:], expected["tokens_text"][0])
        assert torch.equal(codes[row, begin:], expected["tokens_audio"][0])


CHECKS: dict[str, Callable[[DuplexS2SModel, Path], None]] = {
    "train": train,
    "decode": decode,
    "LoRA": lora,
    "export": export,
    "stream": stream,
}


def check(family: str, name: str, folder: Path) -> None:
    """Run one check on a fresh model of the family."""
    codec = folder / "codec.nemo"
    CHECKS[name](build(family, make_codec(codec) if not codec.exists() else str(codec), folder), folder)


def take_steps(model: DuplexS2SModel, num_steps: int) -> list[float]:
    """Train on one dialogue; return the losses."""
    batch = make_batch((FRAMES,))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    losses = []
    for _ in range(num_steps):
        sums = model(batch)
        loss = sums.objective(model.cfg) / sums.num_frames
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def encoded(model: DuplexS2SModel) -> torch.Tensor:
    """Random user frames [2, T, H]."""
    return torch.randn(2, FRAMES, model.audio_head.in_features, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: DuplexS2SModel) -> torch.Tensor:
    """Text and code logits of a batch, in one tensor."""
    text_BTV, codes_BTKC, _ = model.heads(model.hidden_states(model.prepare_inputs(make_batch((FRAMES,)))))
    return torch.cat([text_BTV.flatten(), codes_BTKC.flatten()])


@torch.no_grad()
def teacher_forced(
    model: DuplexS2SModel, source_BTH: torch.Tensor, text_BT: torch.Tensor, codes_BTK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model predicts at each frame when it reads the generated past at once."""
    parts = model.frame_model()
    text_BT = torch.cat([torch.full_like(text_BT[:, :1], parts.pad_id), text_BT[:, :-1]], dim=1)
    codes_BTK = torch.cat([torch.full_like(codes_BTK[:, :1], parts.delay_id), codes_BTK[:, :-1]], dim=1)
    hidden = parts.body(inputs_embeds=model.embed(source_BTH, text_BT, codes_BTK), use_cache=False).last_hidden_state
    text, codes, _ = model.heads(hidden)
    return text.argmax(-1), codes.argmax(-1)
