"""Looking through data for what training would suffer from."""

from s2s_data.check.corpus import Report, check_shar
from s2s_data.check.kinds import ERROR, KINDS, WARNING, Kind, Problem

__all__ = ["ERROR", "KINDS", "WARNING", "Kind", "Problem", "Report", "check_shar"]
