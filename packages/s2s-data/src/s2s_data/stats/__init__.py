"""What a corpus holds: hours, turns, overlap, response times, and durations for bucketing."""

from s2s_data.stats.corpus import CorpusStats, Quantiles, SideStats, corpus_stats, summarise
from s2s_data.stats.measure import Measured, measure

__all__ = ["CorpusStats", "Measured", "Quantiles", "SideStats", "corpus_stats", "measure", "summarise"]
