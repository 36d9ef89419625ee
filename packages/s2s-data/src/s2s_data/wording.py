"""Words for messages and summaries."""


def counted(number: int, noun: str) -> str:
    """Return "1 shard", "2 shards"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
