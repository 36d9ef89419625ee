"""Cuts to tensors: a cut becomes a :class:`Dialogue`, dialogues become a batch.

Shapes: ``B`` batch, ``T`` frames (80 ms); see :mod:`s2s_data.batch`.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from s2s_data.audio import empty_rows, load_audio, pad_rows, place_of
from s2s_data.batch import DuplexBatch, Turn, empty_batch
from s2s_data.dialogue import Dialogue, FloatArray
from s2s_data.errors import DataError, UnreadableCutError
from s2s_data.roles import AGENT, USER, Roles, clean_text
from s2s_data.shar import RECORDING, TARGET_AUDIO, TARGET_CODES
from s2s_data.stored_codes import check_fingerprint, load_codes, pad_codes
from s2s_data.text_channel import MISTIMED, TOO_LONG, UNTIMED, FrameGrid, TextChannel, TextFitLog, build_text_channel
from s2s_data.tokenizer import TextTokenizer, check_special_ids

TEXT_ONLY = "text_only"  # the custom field of a cut of which the text alone is learned


class Rows(NamedTuple):
    """Room for the audio of a batch."""

    source_BS: Tensor | None
    target_BR: Tensor | None

    def of(self, place: int) -> tuple[FloatArray | None, FloatArray | None]:
        """Return the rows of one dialogue."""
        source_S, target_R = (None if audio is None else audio[place].numpy() for audio in self)
        return source_S, target_R


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
    spread_source_text
        Spread the tokens of a user's turn over it, by the times of its words where it has them, instead of one a
        frame from its start.
    spread_target_text
        The same of the agent's turns.
    lead_target_text_by
        How many frames before each span of the agent's words with times their tokens stand then, one a frame.
    load_target_audio
        Load the agent's audio even if its codes are stored.
    codec_fingerprint
        The model's codec: stored codes of another one are refused. None takes any.

    Raises
    ------
    DataError
        If a role list is empty or shares a name with the other, PAD, BOS and EOS aren't three ids, or
        ``lead_target_text_by`` is negative or without effect.

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
        spread_source_text: bool = False,
        spread_target_text: bool = False,
        lead_target_text_by: int = 0,
        load_target_audio: bool = True,
        codec_fingerprint: str | None = None,
    ) -> None:
        check_special_ids(tokenizer)
        if lead_target_text_by < 0:
            raise DataError(f"data.lead_target_text_by is {lead_target_text_by}: give 0 or more frames")
        if lead_target_text_by and not spread_target_text:
            raise DataError(
                "data.lead_target_text_by has no effect without data.spread_target_text: the agent's text then stands "
                "at its turn's start"
            )
        self.tokenizer = tokenizer
        self.frame_length_s = frame_length
        self.source_sample_rate_hz = source_sample_rate
        self.target_sample_rate_hz = target_sample_rate
        self.roles = Roles.of(input_roles, output_roles)
        self.spread_source_text = spread_source_text
        self.spread_target_text = spread_target_text
        self.lead_target_text_by = lead_target_text_by
        self.load_target_audio = load_target_audio
        self.codec_fingerprint = codec_fingerprint
        self._too_long = TextFitLog(TOO_LONG)
        self._mistimed = TextFitLog(MISTIMED)
        self._untimed = TextFitLog(UNTIMED)

    def __getitem__(self, cuts: Iterable[Cut]) -> DuplexBatch:
        """Load ``cuts`` into one batch.

        Raises :class:`UnreadableCutError`, naming the cut, if a channel is missing or unreadable, and
        :class:`DataError` if codes are of another codec.
        """
        cuts = list(cuts)
        with_target_audio = self.load_target_audio or not all(cut.has_custom(TARGET_CODES) for cut in cuts)
        return self.collate([self.dialogue(cut, with_target_audio=with_target_audio) for cut in cuts])

    def rows(self, cuts: Sequence[Cut]) -> Rows:
        """Make room for a batch's audio, into which :meth:`dialogue` may decode."""
        source_BS = empty_rows([compute_num_samples(cut.duration, self.source_sample_rate_hz) for cut in cuts])
        if not self.load_target_audio:
            return Rows(source_BS, None)
        return Rows(
            source_BS, empty_rows([compute_num_samples(cut.duration, self.target_sample_rate_hz) for cut in cuts])
        )

    def dialogue(
        self,
        cut: Cut,
        *,
        with_target_audio: bool | None = None,
        row: tuple[FloatArray | None, FloatArray | None] | None = None,
    ) -> Dialogue:
        """Load one cut: the user's audio, the agent's codes where they are stored, and its audio.

        The agent's audio is loaded where there are no codes, and where ``with_target_audio`` (if it isn't given,
        ``load_target_audio``) wants it. ``row`` is where its audio may be decoded to, see :meth:`rows`.
        """
        source_row, target_row = row if row is not None else (None, None)
        if with_target_audio is None:
            with_target_audio = self.load_target_audio
        with_codes, has_audio = cut.has_custom(TARGET_CODES), cut.has_custom(TARGET_AUDIO)
        if not with_codes and not has_audio:
            raise UnreadableCutError(
                f"{place_of(cut)} has neither {TARGET_AUDIO} nor {TARGET_CODES}: attach the agent's audio as the "
                f"cut's custom recording {TARGET_AUDIO}, or take the cut out"
            )
        if with_codes:
            check_fingerprint(cut, self.codec_fingerprint)
        with_audio = has_audio and (with_target_audio or not with_codes)
        return Dialogue(
            cut_id=cut.id,
            duration_s=cut.duration,
            grid=FrameGrid.of(cut.duration, self.frame_length_s, cut.sampling_rate),
            turns=tuple(self.roles.turns(cut)),
            source_S=load_audio(cut, RECORDING, self.source_sample_rate_hz, source_row),
            source_rate_hz=self.source_sample_rate_hz,
            target_R=load_audio(cut, TARGET_AUDIO, self.target_sample_rate_hz, target_row) if with_audio else None,
            target_rate_hz=self.target_sample_rate_hz,
            codes_TK=load_codes(cut) if with_codes else None,
            text_only=is_text_only(cut),
        )

    def collate(self, dialogues: Sequence[Dialogue], rows: Rows | None = None) -> DuplexBatch:
        """Put loaded dialogues into one batch, their audio into ``rows`` where it fits.

        Raises :class:`DataError` if some have codes alone and others audio alone.
        """
        target = [self._text_channel(dialogue, AGENT) for dialogue in dialogues]
        source = [self._text_channel(dialogue, USER) for dialogue in dialogues]
        for dialogue, agent, user in zip(dialogues, target, source, strict=True):
            self._too_long.add(dialogue.cut_id, agent.num_dropped_tokens)
            self._mistimed.add(dialogue.cut_id, agent.num_mistimed_turns + user.num_mistimed_turns)
            if self.lead_target_text_by:
                self._untimed.add(dialogue.cut_id, sum(not turn.words for turn in _turns(dialogue, AGENT) if turn.text))
        rows = rows or Rows(None, None)
        source_audio_BS, source_audio_lens_B = pad_rows([dialogue.source_S for dialogue in dialogues], rows.source_BS)
        target_tokens_BT, target_token_lens_B = self._pad_tokens(target)
        source_tokens_BT, source_token_lens_B = self._pad_tokens(source)
        batch = DuplexBatch(
            source_audio=source_audio_BS,
            source_audio_lens=source_audio_lens_B,
            target_tokens=target_tokens_BT,
            target_token_lens=target_token_lens_B,
            source_tokens=source_tokens_BT,
            source_token_lens=source_token_lens_B,
            target_texts=[_joined(dialogue, AGENT) for dialogue in dialogues],
            source_texts=[_joined(dialogue, USER) for dialogue in dialogues],
            cut_ids=[dialogue.cut_id for dialogue in dialogues],
            turns=[[_without_words(turn) for turn in dialogue.turns] for dialogue in dialogues],
            num_dropped_tokens=torch.tensor([item.num_dropped_tokens for item in target], dtype=torch.int64),
            text_only=torch.tensor([dialogue.text_only for dialogue in dialogues], dtype=torch.bool),
        )
        _add_target(batch, dialogues, rows.target_BR)
        return batch

    def empty(self, peers: Sequence[Cut]) -> DuplexBatch:
        """Return the batch of no dialogue, with the keys that a batch of the loaded cuts ``peers`` would have."""
        with_codes = all(cut.has_custom(TARGET_CODES) for cut in peers)
        all_audio = all(cut.has_custom(TARGET_AUDIO) for cut in peers)
        with_audio = not with_codes or (self.load_target_audio and all_audio)
        num_codebooks = getattr(peers[0], TARGET_CODES).shape[1] if with_codes else None
        return empty_batch(num_codebooks=num_codebooks, has_target_audio=with_audio)

    def count_tokens(self, cut: Cut) -> int:
        """Count the text tokens of the agent's turns."""
        # not by way of turns: planning doesn't end at a cut that loading skips
        agents = (supervision for supervision in cut.supervisions if supervision.speaker in self.roles.output_roles)
        return sum(len(self.tokenizer.text_to_ids(clean_text(agent.text or ""))) for agent in agents)

    def _text_channel(self, dialogue: Dialogue, role: str) -> TextChannel:
        spread, lead = (
            (self.spread_source_text, 0) if role == USER else (self.spread_target_text, self.lead_target_text_by)
        )
        return build_text_channel(_turns(dialogue, role), dialogue.grid, self.tokenizer, spread=spread, lead=lead)

    def _pad_tokens(self, channels: Sequence[TextChannel]) -> tuple[Tensor, Tensor]:
        tokens = [channel.tokens_T for channel in channels]
        tokens_BT = pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.pad_id)
        return tokens_BT, torch.tensor([len(item) for item in tokens], dtype=torch.int64)


def is_text_only(cut: Cut) -> bool:
    """Whether a dialogue's text alone is to be learned: its sound is silence.

    Raises :class:`UnreadableCutError` for a custom field ``text_only`` that is neither true nor false.
    """
    value = (cut.custom or {}).get(TEXT_ONLY, False)
    if not isinstance(value, bool):
        raise UnreadableCutError(f"{place_of(cut)}: its {TEXT_ONLY} is {value!r:.100}: write true or false")
    return value


def _add_target(batch: DuplexBatch, dialogues: Sequence[Dialogue], target_BR: Tensor | None) -> None:
    codes = [dialogue.codes_TK for dialogue in dialogues if dialogue.codes_TK is not None]
    audio = [dialogue.target_R for dialogue in dialogues if dialogue.target_R is not None]
    names = [f"cut {dialogue.cut_id}" for dialogue in dialogues]
    if len(codes) == len(dialogues):
        batch["target_codes"], batch["target_code_lens"] = pad_codes(codes, names)
    if len(audio) == len(dialogues):
        batch["target_audio"], batch["target_audio_lens"] = pad_rows(audio, target_BR)
    elif len(codes) < len(dialogues):
        without = next(name for name, dialogue in zip(names, dialogues, strict=True) if dialogue.target_R is None)
        raise DataError(
            f"{without} has {TARGET_CODES} alone, other dialogues of its batch {TARGET_AUDIO} alone: store codes for "
            "all the data, or audio for all"
        )


def _turns(dialogue: Dialogue, role: str) -> list[Turn]:
    return [turn for turn in dialogue.turns if turn.role == role]


def _without_words(turn: Turn) -> Turn:
    # Workers' queues, pinned memory and Lightning handle a batch's tuples item by item.
    return turn._replace(words=()) if turn.words else turn


def _joined(dialogue: Dialogue, role: str) -> str:
    return " ".join(turn.text for turn in _turns(dialogue, role))
