"""The sizes of a network before a run: parameters by part, what backward keeps, and operations. No weights are loaded.

Shapes: `B` batch, `T` frames (80 ms), `K` codebooks, `C` codes of one, `V` text vocabulary, `H` hidden, `N` valid
frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from s2s_model.channels import DuplexInputs
from s2s_model.codecs import load_codec
from s2s_model.config import ModelConfig
from s2s_model.dtypes import default_dtype
from s2s_model.llm import hidden_size, llm_blocks, text_config
from s2s_model.losses import LossSums
from s2s_model.names import first_line
from s2s_model.network import DuplexNetwork
from s2s_model.perception.hugging_face import HuggingFacePerception
from s2s_model.saved_activations import PeakMemory, SavedActivations, without_data
from s2s_model.unloaded import CodecSizes, UnloadedNetwork
from s2s_parallel.estimate import Activations, Count, Part
from s2s_parallel.speed import Work


@dataclass(frozen=True)
class NetworkSizes:
    """What an estimate is made of."""

    parts: list[Part]
    activations: Activations
    work: Work
    llm_config: Any  # Hugging Face's, of the text part


def codec_sizes(config: ModelConfig) -> CodecSizes:
    """Load the codec to the CPU and count.

    Raises:
        FileNotFoundError, ValueError: as `load_codec`.
    """
    codec = load_codec(
        config.pretrained_audio_codec,
        key="model.pretrained_audio_codec",
        num_codebooks=config.audio_codec_num_codebooks,
    )
    return CodecSizes(codec.num_codebooks, codec.codebook_size, sum(p.numel() for p in codec._model.parameters()))


def measure_network(
    config: ModelConfig, codec: CodecSizes, *, batch_size: int, duration_s: float, frame_length_s: float,
    dtype: torch.dtype, sample_rate_hz: int = 16000,
) -> NetworkSizes:  # fmt: skip
    """Build the network on fake tensors, and pass a batch of `batch_size` dialogues of `duration_s` through it.

    Args:
        config: the `model` section.
        codec: what the codec gives.
        batch_size: dialogues of a data parallel process (B).
        duration_s: seconds of each.
        frame_length_s: seconds of a frame.
        dtype: what it computes in.
        sample_rate_hz: of the user's audio.

    Raises:
        FileNotFoundError, ValueError: a part can't be found or built; or the family's code looks at the values of
            its tensors, of which there are none here.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), default_dtype(dtype):
        network = UnloadedNetwork(config, codec, frame_length_s, dtype)
        parts = count_parts(network, codec)
        network.materialise()
        try:
            activations, encoder_flops = _measure(network, codec, batch_size, duration_s, sample_rate_hz)
        except (RuntimeError, NotImplementedError) as error:  # torch's errors of fake tensors
            raise ValueError(
                f"model.pretrained_llm: the memory of {type(network.llm).__name__} can't be estimated without running "
                f"it, as its code depends on values: {first_line(error)}"
            ) from error
        work = work_of(network, batch_size, duration_s, encoder_flops)
    return NetworkSizes(parts, activations, work, text_config(network.llm))


def count_parts(network: DuplexNetwork, codec: CodecSizes) -> list[Part]:
    """The parameters of each part, those that parts share counted once, as of the first."""
    seen: set[int] = set()
    perception, llm = network.perception, network.llm
    adapter = [getattr(perception, name) for name in ("modality_adapter", "proj") if hasattr(perception, name)]
    text = [llm.get_input_embeddings(), *_present(network, "embed_asr_tokens")]
    heads = [llm.get_output_embeddings(), *_present(network, "asr_head")]
    tied = heads[0].weight is text[0].weight
    largest_block = max(_count(block.parameters()).total for block in llm_blocks(llm))
    named: list[tuple[str, list[nn.Module], Any]] = [
        ("text embeddings and head, tied" if tied else "text embeddings", text, "llm"),
        ("text head", heads, "llm"),
        ("audio embeddings", [network.embed_audio_tokens], "llm"),
        ("audio head", [network.audio_head], "llm"),
        ("llm", [llm], "llm"),
        ("adapter", adapter, "encoder"),
        ("perception", [perception], "encoder"),
    ]
    parts = []
    for name, modules, sharding in named:
        parameters = [p for module in modules for p in module.parameters() if not (id(p) in seen or seen.add(id(p)))]  # type: ignore[func-returns-value]
        if parameters:
            trained, frozen = (_count(p for p in parameters if p.requires_grad is flag) for flag in (True, False))
            unit = largest_block if name == "llm" else max(_count(m.parameters()).total for m in modules)
            parts.append(Part(name, trained, frozen, sharding, unit))
    if codec.parameters:
        parts.append(Part("codec", Count(), Count(matrices=codec.parameters), "whole", 0, bytes_per_number=4))
    return parts


def _measure(
    network: UnloadedNetwork, codec: CodecSizes, B: int, duration_s: float, sample_rate_hz: int
) -> tuple[Activations, float]:
    S = round(duration_s * sample_rate_hz)
    encoder = SavedActivations([], network.perception.parameters())
    counter = FlopCounterMode(display=False)
    with counter, encoder.measuring(length=S if isinstance(network.perception, HuggingFacePerception) else None):
        network.encode_source(torch.zeros(B, S, dtype=torch.float32), torch.full((B,), S))
    inputs = _inputs(network, codec, B, round(duration_s / network.frame_length_s) - 1)
    llm = SavedActivations(llm_blocks(network.llm), network.parameters())
    with llm.measuring():
        hidden_BTH = network.hidden_states(inputs)
    heads = _heads_peak(network, inputs, hidden_BTH.detach())
    return Activations(encoder.other, llm.other, llm.blocks, heads, hidden_BTH.nbytes), counter.get_total_flops()


def _heads_peak(network: UnloadedNetwork, inputs: DuplexInputs, hidden_BTH: Tensor) -> int:
    """The most that logits, losses and their gradients take at a time, forward and backward."""
    trained = [p for p in network.parameters() if p.requires_grad]
    peak = PeakMemory()
    network.requires_grad_(False)  # their gradients are counted with the weights
    network.hidden_states = lambda inputs: hidden_BTH.requires_grad_(True)  # type: ignore[method-assign]
    with peak, without_data():
        sums: LossSums = network.loss_sums(inputs)
        sums.objective(network.cfg).backward()
    del network.hidden_states
    for parameter in trained:
        parameter.requires_grad_(True)
    return max(peak.peak - 2 * hidden_BTH.nbytes, 0)  # the valid frames' copy and its gradient aren't logits


def _inputs(network: DuplexNetwork, codec: CodecSizes, B: int, T: int) -> DuplexInputs:
    trained = any(p.requires_grad for p in network.perception.parameters())
    tokens_BT, codes_BTK = (
        torch.zeros(B, T, dtype=torch.int64),
        torch.zeros(B, T, codec.num_codebooks, dtype=torch.int64),
    )
    user_text_BT = tokens_BT if network.cfg.predict_user_text else None
    return DuplexInputs(
        source_BTH=torch.zeros(B, T, hidden_size(network.llm), requires_grad=trained),
        text_BT=tokens_BT,
        codes_BTK=codes_BTK,
        text_labels_BT=tokens_BT,
        code_labels_BTK=codes_BTK,
        valid_BT=torch.ones(B, T, dtype=torch.bool),
        user_text_BT=user_text_BT,
        user_text_labels_BT=user_text_BT,
    )


def work_of(network: DuplexNetwork, B: int, duration_s: float, encoder_flops: float) -> Work:
    """What a step on `B` dialogues of `duration_s` computes, the encoder's forward pass being `encoder_flops`."""
    config, blocks = text_config(network.llm), llm_blocks(network.llm)
    chosen = _share_of_experts(config)
    weights = [(name, p) for block in blocks for name, p in block.named_parameters() if p.ndim >= 2]
    active = [
        (int(p.numel() * (chosen if "experts" in name.split(".") else 1)), p.requires_grad) for name, p in weights
    ]
    heads = [network.llm.get_output_embeddings(), network.audio_head, *_present(network, "asr_head")]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Work(
        batch_size=B,
        num_frames=round(duration_s / network.frame_length_s) - 1,
        duration_s=duration_s,
        block_params=sum(count for count, trained in active if trained),
        frozen_block_params=sum(count for count, trained in active if not trained),
        head_params=sum(int(head.weight.numel()) for head in heads),
        num_blocks=len(blocks),
        attention_width=int(config.num_attention_heads) * int(head_size),
        hidden_size=hidden_size(network.llm),
        encoder_forward_flops=encoder_flops,
        encoder_is_trained=any(p.requires_grad for p in network.perception.parameters()),
    )


def _share_of_experts(config: Any) -> float:
    """The share of a layer's experts that a token meets."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    number = next((int(getattr(config, name)) for name in names if getattr(config, name, None)), 0)
    chosen = getattr(config, "num_experts_per_tok", None)
    return int(chosen) / number if number and chosen else 1.0


def _present(network: nn.Module, name: str) -> list[Any]:
    return [getattr(network, name)] if hasattr(network, name) else []


def _count(parameters: Iterable[nn.Parameter]) -> Count:
    sizes = [(p.numel(), p.ndim >= 2) for p in parameters]
    return Count(sum(n for n, is_matrix in sizes if is_matrix), sum(n for n, is_matrix in sizes if not is_matrix))
