"""Build the demo's corpus: speak it, encode the agent with the demo's codec, keep the Shar.

    hatch run demo:corpus demo/corpus

Needs `flite` (apt-get install flite) and py-nanotts (comes with the environment), and demo/codec.nemo.
"""

import argparse
from pathlib import Path

from s2s_data.demo import build_demo_corpus
from s2s_model.codecs import load_codec


def main() -> None:
    """Write OUT/train, OUT/heldout and OUT/heldout_voice, each a Shar with stored codes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--codec", default="demo/codec.nemo")
    args = parser.parse_args()
    build_demo_corpus(args.out_dir, codec=load_codec(args.codec), progress=print)


if __name__ == "__main__":
    main()
