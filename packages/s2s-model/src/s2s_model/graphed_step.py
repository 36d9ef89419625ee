"""Training steps as CUDA graphs: from features and codes to losses, and back.

Features and codes are computed before, as SpecAugment draws its masks on the host. Batches are padded to lengths in
steps of 2 s, so that a data set has few sizes; what is padded counts nowhere.

Shapes: `B` batch, `T` frames (80 ms), `F` mel features, `K` codebooks.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from s2s_data.batch import DuplexBatch
from s2s_model.losses import LossSums
from s2s_model.perception.nemo import NemoPerception
from s2s_parallel.training_graphs import Results, TrainingGraphs

if TYPE_CHECKING:
    from s2s_model.network import DuplexNetwork

STEP_FRAMES = 25


def make_graphs(network: "DuplexNetwork") -> TrainingGraphs:
    """Graphs of the network's steps, captured as batches come.

    Raises:
        ValueError: the host decides in each step what runs; the message names the config key.
    """
    perception = network.perception
    if not isinstance(perception, NemoPerception):
        raise ValueError(
            f"parallel.cuda_graphs: {type(perception).__name__} decides on the host what it computes, NeMo's encoders "
            "don't: set parallel.cuda_graphs=false"
        )
    perception.check_repeatable()
    if network.cfg.delay_text_eos_by:
        raise ValueError(
            "parallel.cuda_graphs: model.delay_text_eos_by looks on the host for where turns end: set it to 0, or "
            "parallel.cuda_graphs=false"
        )

    def losses(
        features_BFT: Tensor, features_B: Tensor, tokens_BT: Tensor, tokens_B: Tensor, codes_BTK: Tensor,
        codes_B: Tensor, text_only_B: Tensor, *user_tokens: Tensor,
    ) -> Results:  # fmt: skip
        source_BTH, source_B = perception.encode(features_BFT, features_B)
        user_tokens_BT = user_tokens[0] if user_tokens else None
        inputs, spread_B = network.align(
            source_BTH, tokens_BT, codes_BTK, (source_B, tokens_B, codes_B), user_tokens_BT, text_only_B
        )
        sums = network.training_losses(inputs)
        user_text = () if sums.user_text is None else (sums.user_text,)
        return Results((sums.text, sums.audio, *user_text), (sums.num_frames, spread_B))

    return TrainingGraphs(losses, network)


def graphed_losses(network: "DuplexNetwork", graphs: TrainingGraphs, batch: DuplexBatch) -> tuple[LossSums, Tensor]:
    """The losses of a batch, and by how many frames its streams differ [B]."""
    perception = network.perception
    assert isinstance(perception, NemoPerception)
    features_BFT, features_B = perception.augmented_features(batch["source_audio"], batch["source_audio_lens"])
    codes_BTK, codes_B = network.target_codes(batch)
    frames = max(batch["target_tokens"].shape[1], codes_BTK.shape[1])
    frames += -frames % STEP_FRAMES
    features_of_step = STEP_FRAMES * perception.features_per_frame
    # A causal encoder makes its first vector of the first feature alone.
    missing = -(features_BFT.shape[2] - 1) % features_of_step
    tensors = [
        pad(features_BFT, (0, missing)),
        features_B,
        _padded(batch["target_tokens"], frames, network.tokenizer.pad_id),
        batch["target_token_lens"],
        pad(codes_BTK, (0, 0, 0, frames - codes_BTK.shape[1])),
        codes_B,
        batch["text_only"] if "text_only" in batch else torch.zeros_like(codes_B, dtype=torch.bool),
    ]
    if network.cfg.predict_user_text:
        tensors.append(_padded(batch["source_tokens"], frames, network.tokenizer.pad_id))
    results = graphs(*tensors)
    num_frames, spread_B = results.others
    text, audio, *user_text = results.differentiable
    return LossSums(text, audio, num_frames, user_text[0] if user_text else None), spread_B


def _padded(tokens_BT: Tensor, frames: int, pad_id: int) -> Tensor:
    return pad(tokens_BT, (0, frames - tokens_BT.shape[1]), value=pad_id)
