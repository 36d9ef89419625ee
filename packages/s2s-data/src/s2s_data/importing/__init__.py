"""From recordings to a Shar: two-channel files with transcripts, and jsonl manifests."""

from s2s_data.importing.manifest import FIELDS, Spacing, import_manifest
from s2s_data.importing.options import ImportOptions
from s2s_data.importing.stereo import import_stereo
from s2s_data.importing.summary import ImportSummary, Skipped

__all__ = ["FIELDS", "ImportOptions", "ImportSummary", "Skipped", "Spacing", "import_manifest", "import_stereo"]
