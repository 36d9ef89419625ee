"""Changes to loaded dialogues that keep both channels, codes and turns together.

:mod:`s2s_data.augment.config` says which there are, :mod:`s2s_data.augment.chain` puts them together.
"""
