"""The modality adapter: from the encoder's vectors to as many as there are frames, and to the LLM's width.

Shapes: `B` batch, `T` the encoder's vectors, `C` channels, `H` hidden.
"""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from s2s_model.perception.base import FRAME_TOLERANCE_S
from s2s_model.targets import check_targets, instantiate

KEY = "model.perception.modality_adapter"
STACKING = "s2s_model.perception.adapters.StackingAdapter"
NEMO_MODULES = "nemo.collections.speechlm2.modules.perception"


class StackingAdapter(nn.Module):
    """Joins `subsampling_factor` vectors in a row to one and projects it; called as NeMo's adapters are.

    Args:
        input_dim: width of a vector; by default the encoder's.
        output_dim: width of a result; by default the LLM's.
        subsampling_factor: vectors a result; by default as many as fill a frame.
        hidden_dim: width of a hidden layer with GELU, its input normalised; None: one linear layer and nothing else.
    """

    def __init__(
        self, input_dim: int, output_dim: int, subsampling_factor: int = 4, hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        self.subsampling_factor = subsampling_factor
        stacked_dim = input_dim * subsampling_factor
        if hidden_dim is None:
            self.projection = nn.Sequential(nn.Linear(stacked_dim, output_dim))
        else:
            self.projection = nn.Sequential(
                nn.LayerNorm(stacked_dim),
                nn.Linear(stacked_dim, hidden_dim),
                nn.GELU(),
                nn.Linear(hidden_dim, output_dim),
            )

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Stack vectors [B, C, T] of `length` [B]; returns [B, H, T / factor] and the new lengths, both rounded up."""
        B, C, T = audio_signal.shape
        beyond_BT = length.new_ones(B, T).cumsum(dim=1) > length[:, None]
        x_BTC = audio_signal.masked_fill(beyond_BT[:, None], 0).transpose(1, 2)
        x_BTC = pad(x_BTC, (0, 0, 0, -T % self.subsampling_factor))
        stacked = x_BTC.reshape(B, -1, C * self.subsampling_factor)
        lens_B = (length + self.subsampling_factor - 1) // self.subsampling_factor
        return self.projection(stacked).transpose(1, 2), lens_B


def build_adapter(
    section: dict[str, Any], encoder_dim: int, hidden_size: int, factor: float
) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """Build what `model.perception.modality_adapter` describes.

    Args:
        section: its config.
        encoder_dim: width of the encoder's vectors.
        hidden_size: width of the LLM.
        factor: vectors of the encoder that make a frame.

    Returns:
        the adapter, the projection behind it (identity where none is needed), and the config with all sizes set.

    Raises:
        ValueError: the adapter can't be built, or doesn't take what the encoder gives; the message quotes both sizes.
    """
    check_targets(section, KEY)
    section = _complete(section, encoder_dim, hidden_size, factor)
    adapter: nn.Module = instantiate(section, KEY)
    return adapter, _projection(section, encoder_dim, hidden_size), section


def unchecked() -> AbstractContextManager[None]:
    """Within it NeMo's modules take any tensor: its types know no adapter that is a Conformer."""
    from nemo.core.classes.common import typecheck

    context: AbstractContextManager[None] = typecheck.disable_checks()
    return context


def whole_factor(encoder_frame_s: float, frame_length_s: float) -> int:
    """How many of the encoder's vectors make a frame.

    Raises:
        ValueError: it is no whole number; the message quotes both durations.
    """
    factor = round(frame_length_s / encoder_frame_s)
    if factor < 1 or abs(factor * encoder_frame_s - frame_length_s) > FRAME_TOLERANCE_S:
        raise ValueError(
            f"model.perception.encoder gives a vector every {encoder_frame_s * 1000:g} ms and data.frame_length asks "
            f"for {frame_length_s * 1000:g} ms, which is no multiple of it: change data.frame_length"
        )
    return factor


def _complete(section: dict[str, Any], encoder_dim: int, hidden_size: int, factor: float) -> dict[str, Any]:
    """Set the sizes that are left open, and refuse those that don't fit."""
    target = section.get("_target_")
    if target == f"{NEMO_MODULES}.QformerConnector":
        raise ValueError(
            f"{KEY}: QformerConnector gives a fixed number of vectors whatever the audio's length, a duplex model "
            "needs one a frame: use a ConformerEncoder, IdentityConnector or MultiLayerProjectionConnector"
        )
    if target == f"{NEMO_MODULES}.IdentityConnector":
        return section
    section = dict(section)
    if target == STACKING and section.get("subsampling_factor") is None:
        section["subsampling_factor"] = round(factor)
    if target in (STACKING, f"{NEMO_MODULES}.MultiLayerProjectionConnector"):
        section["output_dim"] = hidden_size
        _set_or_check(section, "input_dim", encoder_dim)
    elif "d_model" in section:
        _set_or_check(section, "feat_in", encoder_dim)
    return section


def _set_or_check(section: dict[str, Any], name: str, encoder_dim: int) -> None:
    if section.get(name) is None:
        section[name] = encoder_dim
    if section[name] != encoder_dim:
        raise ValueError(
            f"{KEY}.{name} is {section[name]}, the encoder's vectors have {encoder_dim}: set it to {encoder_dim}, or "
            "leave it out"
        )


def _projection(section: dict[str, Any], encoder_dim: int, hidden_size: int) -> nn.Module:
    """As NeMo: a Conformer gets a linear layer, even where the widths agree; an adapter with `output_dim` has its own.

    Where NeMo passes on vectors of another width than the LLM's, ours projects them.
    """
    if section.get("output_dim") is not None:
        return nn.Identity()
    if "d_model" in section:
        feat_out = section.get("feat_out") or -1
        return nn.Linear(feat_out if feat_out > 0 else section["d_model"], hidden_size)
    return nn.Identity() if encoder_dim == hidden_size else nn.Linear(encoder_dim, hidden_size)
