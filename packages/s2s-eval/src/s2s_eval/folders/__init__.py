"""Folders of speech and texts, as dialogues to score."""
