"""What the command line is given, a Shar folder or a blend file, as parts that one process can read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lhotse.cut import Cut

from s2s_data.blend import parse_blend
from s2s_data.shar import CUTS, find_shards, folders
from s2s_data.share import WHOLE, Share
from s2s_data.sources import CutRef, ManifestSource, SharSource

BLEND_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Part:
    """A shard of a Shar, or a share of a manifest."""

    source: SharSource | ManifestSource  # of one shard
    share: Share = WHOLE

    @property
    def name(self) -> str:
        """The manifest's path, for messages."""
        return self.source.shards[0].paths[CUTS] if isinstance(self.source, SharSource) else self.source.path

    def refs(self) -> Iterator[CutRef]:
        """Yield the cuts, to be loaded one by one; raises :class:`DataError` where files are broken."""
        return (ref for _, ref in self.source.refs(self.share, 0, with_target_audio=True))

    def metadata(self) -> Iterator[Cut]:
        """Yield the cuts without their data; raises :class:`DataError` where the manifest is broken."""
        return self.source.metadata(self.share)


def find_parts(data: Sequence[str], *, shares_per_manifest: int = 1) -> list[Part]:
    """Find the parts of Shar folders and of blend files (``.yaml``), in their order.

    Folders may hold ``*`` and ``{0..3}``. Raises :class:`DataError` if one is missing or wrong.
    """
    sources = [source for path in data for source in _sources(path)]
    return [part for source in sources for part in _split(source, shares_per_manifest)]


def _sources(path: str) -> list[SharSource | ManifestSource]:
    if path.endswith(BLEND_SUFFIXES):
        return [leaf.source for leaf in parse_blend(path, input_cfg=path).leaves]
    return [SharSource(folder, find_shards(folder, path)) for folder in folders(path, path)]


def _split(source: SharSource | ManifestSource, shares_per_manifest: int) -> list[Part]:
    if isinstance(source, ManifestSource):
        return [Part(source, Share(index, shares_per_manifest)) for index in range(shares_per_manifest)]
    return [
        Part(SharSource(source.where, [shard], tags=source.tags, convert=source.convert)) for shard in source.shards
    ]
