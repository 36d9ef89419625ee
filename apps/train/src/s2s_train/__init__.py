"""The thin app that composes the packages and trains."""

__version__ = "0.4.7"
