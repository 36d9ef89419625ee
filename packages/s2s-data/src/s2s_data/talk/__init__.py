"""A corpus of tens of hours: spoken questions whose answers can be computed, by engines that pip and apt bring."""

from s2s_data.talk.corpus import TalkConfig, build_talk_corpus
from s2s_data.talk.plan import Exchange, Talk, ask, dialogue, split_cases
from s2s_data.talk.skills import FRAMES, SKILLS

__all__ = ["FRAMES", "SKILLS", "Exchange", "Talk", "TalkConfig", "ask", "build_talk_corpus", "dialogue", "split_cases"]
