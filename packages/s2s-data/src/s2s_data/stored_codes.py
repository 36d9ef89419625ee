"""Loading codes that lie beside the audio. Shapes: ``B`` batch, ``T`` frames (80 ms), ``K`` codebooks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s2s_data.audio import place_of
from s2s_data.errors import DataError, UnreadableCutError
from s2s_data.shar import TARGET_CODES

IntArray = npt.NDArray[np.int64]

FINGERPRINT = "codec_fingerprint"


def check_fingerprint(cut: Cut, expected: str | None) -> None:
    """Raise :class:`DataError` if ``cut``'s codes are of another codec than ``expected``; None takes any."""
    found = (cut.custom or {}).get(FINGERPRINT)
    if expected is not None and found != expected:
        made_by = f"the codec {found}" if found else "a codec that isn't named"
        raise DataError(
            f"{place_of(cut)}: its {TARGET_CODES} were made by {made_by}, but the model's codec is "
            f"{expected}: use that codec, or encode the data with the model's: s2s-data encode DATA OUT --codec "
            "s2s_model.codecs:load_codec --codec-args name_or_path=CODEC, see docs/import.md"
        )


def load_codes(cut: Cut) -> IntArray:
    """Load the codes of one cut, [T, K] int64.

    Raises :class:`UnreadableCutError` if they can't be read, or aren't integers of two dimensions.
    """
    try:
        codes_TK = np.asarray(cut.load_custom(TARGET_CODES))
    except Exception as error:  # as in load_audio
        raise UnreadableCutError(
            f"{place_of(cut)}: can't read its {TARGET_CODES}: {type(error).__name__}: {error}"
        ) from error
    if codes_TK.ndim != 2 or not np.issubdtype(codes_TK.dtype, np.integer):
        raise UnreadableCutError(
            f"{place_of(cut)}: its {TARGET_CODES} are {codes_TK.dtype} of shape {list(codes_TK.shape)}, "
            "but must be integers of shape [frames, codebooks]"
        )
    return codes_TK.astype(np.int64)


def pad_codes(codes: Sequence[IntArray], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return ([B, T, K] int64 padded with 0, [B] int64); ``names`` are the dialogues', for messages.

    Raises :class:`DataError` if they have different numbers of codebooks.
    """
    for codes_TK, name in zip(codes, names, strict=True):
        if codes_TK.shape[1] != codes[0].shape[1]:
            raise DataError(
                f"{name} has codes of {codes_TK.shape[1]} codebooks, {names[0]} of {codes[0].shape[1]}: "
                "encode both with one codec"
            )
    padded_BTK = pad_sequence([torch.from_numpy(item) for item in codes], batch_first=True)
    return padded_BTK, torch.tensor([len(item) for item in codes], dtype=torch.int64)
