"""Loading codes that lie beside the audio. Shapes: ``B`` batch, ``T`` frames (80 ms), ``K`` codebooks."""

from collections.abc import Sequence

import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s2s_data.audio import place_of
from s2s_data.errors import DataError
from s2s_data.shar import TARGET_CODES

FINGERPRINT = "codec_fingerprint"


def check_fingerprint(cut: Cut, expected: str | None) -> None:
    """Raise :class:`DataError` if ``cut``'s codes are of another codec than ``expected``; None takes any."""
    found = (cut.custom or {}).get(FINGERPRINT)
    if expected is not None and found != expected:
        made_by = f"the codec {found}" if found else "a codec that isn't named"
        raise DataError(
            f"{place_of(cut)}: its {TARGET_CODES} were made by {made_by}, but the model's codec is "
            f"{expected}: use that codec, or encode the data with the model's"
        )


def load_codes(cut: Cut) -> Tensor:
    """Load the codes of one cut, [T, K] int64.

    Raises :class:`DataError` if they can't be read, or aren't integers of two dimensions.
    """
    try:
        codes_TK = torch.from_numpy(cut.load_custom(TARGET_CODES))
    except Exception as error:  # as in load_audio
        raise DataError(f"{place_of(cut)}: can't read its {TARGET_CODES}: {type(error).__name__}: {error}") from error
    if codes_TK.dim() != 2 or codes_TK.is_floating_point():
        raise DataError(
            f"{place_of(cut)}: its {TARGET_CODES} are {codes_TK.dtype} of shape {list(codes_TK.shape)}, "
            "but must be integers of shape [frames, codebooks]"
        )
    return codes_TK.long()


def collate_codes(cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
    """Load the codes of all ``cuts``: ([B, T, K] int64 padded with 0, [B] int64).

    Raises :class:`DataError` if the cuts have different numbers of codebooks.
    """
    codes = [load_codes(cut) for cut in cuts]
    for cut, codes_TK in zip(cuts, codes, strict=True):
        if codes_TK.shape[1] != codes[0].shape[1]:
            raise DataError(
                f"{place_of(cut)} has codes of {codes_TK.shape[1]} codebooks, {place_of(cuts[0])} of "
                f"{codes[0].shape[1]}: encode both with one codec"
            )
    return pad_sequence(codes, batch_first=True), torch.tensor([len(item) for item in codes], dtype=torch.int64)
