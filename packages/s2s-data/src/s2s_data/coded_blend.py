"""Encoding a blend: each of its Shars into a folder of its own, and a blend file that names these."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from s2s_data.blend import parse_blend
from s2s_data.codes import AudioCodec, EncodeJob, EncodeOptions, EncodeSummary, Reporter, encode_shards, jobs_of
from s2s_data.converters import CONVERTERS
from s2s_data.errors import DataError
from s2s_data.shar import CUTS, folders

BLEND_FILE = "blend.yaml"


def encode_blend(
    blend_file: Path | str,
    out_dir: Path | str,
    codec: AudioCodec,
    options: EncodeOptions | None = None,
    reporter: Reporter | None = None,
) -> EncodeSummary:
    """Encode every Shar of a blend into ``out_dir``, and write ``out_dir/blend.yaml``, the same blend of these.

    Entries below a converter that drops stored codes (a role swap: they are of the wrong side then) stay as they
    are. The other arguments are those of :func:`~s2s_data.codes.encode_shar`; shards are numbered over all Shars,
    so ranks have equally many.

    Raises
    ------
    DataError
        If the blend is wrong, an entry is a manifest instead of a Shar, or as
        :func:`~s2s_data.codes.encode_shar` does.

    """
    out = Path(out_dir)
    parse_blend(str(blend_file), input_cfg=str(blend_file))  # for its messages
    plan = _Plan(out)
    entries = plan.entries(str(blend_file), str(blend_file))
    summary = encode_shards(plan.jobs, codec, options, reporter)
    # by each rank, with the same content: any of them may be the last
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f"{BLEND_FILE}.unfinished-{options.rank if options else 0}"
    OmegaConf.save(OmegaConf.create(entries), unfinished)
    unfinished.replace(out / BLEND_FILE)
    return summary


@dataclass
class _Plan:
    """The shards to encode, gathered while the blend is rewritten."""

    out_dir: Path
    jobs: list[EncodeJob] = field(default_factory=list)
    new_folders: dict[str, str] = field(default_factory=dict)  # by what they are made from

    def entries(self, config: Any, where: str) -> list[dict[str, Any]]:
        """Return the entries of ``input_cfg``, a list or a file of one, with their Shars replaced."""
        if isinstance(config, str):
            config = OmegaConf.to_container(OmegaConf.load(config), resolve=True)
        return [self._entry(entry, f"{where}[{number}]") for number, entry in enumerate(config)]

    def _entry(self, entry: Mapping[str, Any], where: str) -> dict[str, Any]:
        if not getattr(CONVERTERS.get(entry["type"]), "keeps_codes", True):
            return dict(entry)
        if entry.get("input_cfg") is not None:
            return {**entry, "input_cfg": self.entries(entry["input_cfg"], f"{where}.input_cfg")}
        if entry.get("shar_path") is None:
            raise DataError(
                f"{where}: codes are stored in a Shar, but this entry is the manifest {entry.get('cuts_path')}: write "
                "it as one first, with lhotse's CutSet.to_shar"
            )
        return {**entry, "shar_path": self._shar_path(entry["shar_path"], f"{where}.shar_path")}

    def _shar_path(self, shar_path: Any, where: str) -> Any:
        if isinstance(shar_path, Mapping):
            return self._folder(shar_path, where)
        if isinstance(shar_path, str):
            new = [self._folder(folder, where) for folder in folders(shar_path, where)]
            return new[0] if len(new) == 1 else new
        if all(isinstance(item, str) for item in shar_path):
            return [self._folder(folder, where) for item in shar_path for folder in folders(item, where)]
        return [[self._folder(folder, where), weight] for folder, weight in shar_path]

    def _folder(self, shar_path: str | Mapping[str, Any], where: str) -> str:
        """Return the new folder of a Shar; a Shar that stands in a blend twice is encoded once."""
        key = json.dumps(shar_path, sort_keys=True)
        if key not in self.new_folders:
            folder = (self.out_dir / f"{len(self.new_folders):03d}-{_name(shar_path)}").absolute()
            self.new_folders[key] = str(folder)
            self.jobs += jobs_of(shar_path, folder, where)
        return self.new_folders[key]


def _name(shar_path: str | Mapping[str, Any]) -> str:
    """Return a name for people, from the path; braces and stars would be patterns."""
    if isinstance(shar_path, Mapping):
        cuts: str | Sequence[str] = shar_path[CUTS]
        shar_path = str(Path(cuts if isinstance(cuts, str) else cuts[0]).parent)
    return re.sub(r"[^\w.-]+", "_", Path(shar_path).name) or "shar"
