"""Scorers, metrics and the listening report."""

__version__ = "0.3.2"
