"""One cut to look at: both channels, the turns, and what the model gets of their text."""

from s2s_data.show.view import ChannelView, CutView, find_cut, view_cut

__all__ = ["ChannelView", "CutView", "find_cut", "view_cut"]
