"""Cuts to tensors. Shapes: ``B`` batch, ``T`` frames (80 ms); see :mod:`s2s_data.batch`."""

from collections.abc import Collection, Iterable, Sequence

import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from s2s_data.audio import collate_audio, place_of
from s2s_data.batch import DuplexBatch, Turn, empty_batch
from s2s_data.errors import DataError
from s2s_data.roles import AGENT, USER, Roles
from s2s_data.shar import RECORDING, TARGET_AUDIO, TARGET_CODES
from s2s_data.stored_codes import check_fingerprint, collate_codes
from s2s_data.text_channel import FrameGrid, TextChannel, TextFitLog, build_text_channel
from s2s_data.tokenizer import TextTokenizer, check_special_ids


class DuplexDataset(Dataset[DuplexBatch]):
    """Turns the cuts of a batch into its tensors; a function in the shape of a map-style dataset.

    Parameters
    ----------
    tokenizer
        Makes the text channels.
    frame_length
        Seconds a frame.
    source_sample_rate, target_sample_rate
        Rates of the user's and the agent's audio, Hz; audio of other rates is resampled.
    input_roles, output_roles
        Speaker names of the user's and the agent's turns.
    load_target_audio
        Load the agent's audio even if its codes are stored.
    codec_fingerprint
        The model's codec: stored codes of another one are refused. None takes any.

    Raises
    ------
    DataError
        If a role list is empty or shares a name with the other, or PAD, BOS and EOS aren't three ids.

    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        frame_length: float = 0.08,
        source_sample_rate: int = 16000,
        target_sample_rate: int = 22050,
        input_roles: Collection[str] = ("user",),
        output_roles: Collection[str] = ("agent",),
        load_target_audio: bool = True,
        codec_fingerprint: str | None = None,
    ) -> None:
        check_special_ids(tokenizer)
        self.tokenizer = tokenizer
        self.frame_length_s = frame_length
        self.source_sample_rate_hz = source_sample_rate
        self.target_sample_rate_hz = target_sample_rate
        self.roles = Roles.of(input_roles, output_roles)
        self.load_target_audio = load_target_audio
        self.codec_fingerprint = codec_fingerprint
        self._text_fit = TextFitLog()

    def __getitem__(self, cuts: Iterable[Cut]) -> DuplexBatch:
        """Load ``cuts`` into one batch.

        Raises :class:`DataError`, naming the cut, if a channel is missing or unreadable.
        """
        cuts = list(cuts)
        turns = [self.roles.turns(cut) for cut in cuts]
        target = [self._text_channel(cut, item, AGENT) for cut, item in zip(cuts, turns, strict=True)]
        source = [self._text_channel(cut, item, USER) for cut, item in zip(cuts, turns, strict=True)]
        for cut, channel in zip(cuts, target, strict=True):
            self._text_fit.add(cut.id, channel.num_dropped_tokens)
        source_audio_BS, source_audio_lens_B = collate_audio(cuts, RECORDING, self.source_sample_rate_hz)
        target_tokens_BT, target_token_lens_B = self._collate(target)
        source_tokens_BT, source_token_lens_B = self._collate(source)
        batch = DuplexBatch(
            source_audio=source_audio_BS,
            source_audio_lens=source_audio_lens_B,
            target_tokens=target_tokens_BT,
            target_token_lens=target_token_lens_B,
            source_tokens=source_tokens_BT,
            source_token_lens=source_token_lens_B,
            target_texts=[_joined(item, AGENT) for item in turns],
            source_texts=[_joined(item, USER) for item in turns],
            cut_ids=[cut.id for cut in cuts],
            turns=turns,
            num_dropped_tokens=torch.tensor([item.num_dropped_tokens for item in target], dtype=torch.int64),
        )
        self._add_target(batch, cuts)
        return batch

    def empty(self, peers: Sequence[Cut]) -> DuplexBatch:
        """Return the batch of no dialogue, with the keys that a batch of ``peers`` would have."""
        with_codes, with_audio = self._target_fields(peers)
        num_codebooks = getattr(peers[0], TARGET_CODES).shape[1] if with_codes else None
        return empty_batch(num_codebooks=num_codebooks, has_target_audio=with_audio)

    def _text_channel(self, cut: Cut, turns: Sequence[Turn], role: str) -> TextChannel:
        grid = FrameGrid.of(cut.duration, self.frame_length_s, cut.sampling_rate)
        return build_text_channel([turn for turn in turns if turn.role == role], grid, self.tokenizer)

    def _collate(self, channels: Sequence[TextChannel]) -> tuple[Tensor, Tensor]:
        tokens = [channel.tokens_T for channel in channels]
        tokens_BT = pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.pad_id)
        return tokens_BT, torch.tensor([len(item) for item in tokens], dtype=torch.int64)

    def _target_fields(self, cuts: Sequence[Cut]) -> tuple[bool, bool]:
        """Tell whether a batch of ``cuts`` has codes, and whether it has audio, of the agent."""
        with_codes = all(cut.has_custom(TARGET_CODES) for cut in cuts)
        all_audio = all(cut.has_custom(TARGET_AUDIO) for cut in cuts)
        return with_codes, not with_codes or (self.load_target_audio and all_audio)

    def _add_target(self, batch: DuplexBatch, cuts: Sequence[Cut]) -> None:
        with_codes, with_audio = self._target_fields(cuts)
        if with_codes:
            for cut in cuts:
                check_fingerprint(cut, self.codec_fingerprint)
            batch["target_codes"], batch["target_code_lens"] = collate_codes(cuts)
        if with_audio:
            for cut in cuts:
                _check_has_audio(cut)
            batch["target_audio"], batch["target_audio_lens"] = collate_audio(
                cuts, TARGET_AUDIO, self.target_sample_rate_hz
            )


def _joined(turns: Sequence[Turn], role: str) -> str:
    return " ".join(turn.text for turn in turns if turn.role == role)


def _check_has_audio(cut: Cut) -> None:
    if cut.has_custom(TARGET_AUDIO):
        return
    if cut.has_custom(TARGET_CODES):
        raise DataError(
            f"{place_of(cut)} has {TARGET_CODES} alone, other cuts of its batch {TARGET_AUDIO} alone: "
            "store codes for all the data, or audio for all"
        )
    raise DataError(
        f"{place_of(cut)} has neither {TARGET_AUDIO} nor {TARGET_CODES}: attach the agent's audio as the "
        f"cut's custom recording {TARGET_AUDIO}, or take the cut out"
    )
