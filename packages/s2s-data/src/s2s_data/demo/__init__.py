"""A small corpus of closed-domain spoken dialogues, built from packaged speech engines."""

from s2s_data.demo.corpus import DemoConfig, build_demo_corpus
from s2s_data.demo.dialogues import Dialogue, DialoguePlan, Exchange, plan_dialogues
from s2s_data.demo.voices import AGENT_VOICE, HELDOUT_VOICE, USER_VOICES, Voice

__all__ = [
    "AGENT_VOICE",
    "HELDOUT_VOICE",
    "USER_VOICES",
    "DemoConfig",
    "Dialogue",
    "DialoguePlan",
    "Exchange",
    "Voice",
    "build_demo_corpus",
    "plan_dialogues",
]
