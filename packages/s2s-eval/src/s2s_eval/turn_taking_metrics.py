"""Turn-taking figures over many dialogues at once.

Names end in nothing or in ``_<ds>``, which :func:`turn_taking_metrics` is given as ``suffix``.
"""

import math
from collections.abc import Sequence

import numpy as np

from s2s_eval.turn_taking import BargeIn, Response, TurnTaking

PERCENTILES = {"p10": 10, "median": 50, "p90": 90}


def turn_taking_metrics(dialogues: Sequence[TurnTaking], suffix: str = "") -> dict[str, float]:
    """Return the metrics that have an occasion; rates are in per cent, times in seconds.

    - ``val_latency_s_mean``, ``_median``, ``_p10``, ``_p90``: over the user turns that are answered;
      ``ref_latency_s_median``: of the reference, over all that ask for an answer.
    - ``val_missed_turns``: of the user turns that ask for an answer, those without one.
    - ``val_talk_over``: of the users' speech time, what the agent talks over.
    - ``val_barge_ins``: how often the user interrupts and the agent should yield; ``val_barge_in_success``: how often
      it does; ``val_barge_in_stop_s_median``: after how long, one that never stops counting as endless (left out where
      that is the median).
    - ``val_false_stops``: of the occasions on which the reference agent goes on speaking, those on which the
      generated one stops. One that merely has said all it had to say counts too.
    """
    user_s = math.fsum(dialogue.user_speech_s for dialogue in dialogues)
    talk_over_s = math.fsum(dialogue.talk_over_s for dialogue in dialogues)
    metrics = response_metrics([response for dialogue in dialogues for response in dialogue.responses])
    metrics |= barge_in_metrics([barge_in for dialogue in dialogues for barge_in in dialogue.barge_ins])
    if user_s:
        metrics["val_talk_over"] = 100 * talk_over_s / user_s
    return {name + suffix: value for name, value in metrics.items()}


def response_metrics(responses: Sequence[Response]) -> dict[str, float]:
    """Return latencies and missed turns."""
    if not responses:
        return {}
    latencies = [response.latency_s for response in responses if response.latency_s is not None]
    metrics = {
        "val_missed_turns": 100 * (len(responses) - len(latencies)) / len(responses),
        "ref_latency_s_median": float(np.median([response.reference_latency_s for response in responses])),
    }
    if latencies:
        metrics["val_latency_s_mean"] = math.fsum(latencies) / len(latencies)
        for name, percent in PERCENTILES.items():
            metrics[f"val_latency_s_{name}"] = float(np.percentile(latencies, percent))
    return metrics


def barge_in_metrics(barge_ins: Sequence[BargeIn]) -> dict[str, float]:
    """Return how often the agent yields where it should, and stops where it shouldn't."""
    yields = [barge_in for barge_in in barge_ins if barge_in.kind == "yield"]
    keeps = [barge_in for barge_in in barge_ins if barge_in.kind == "keep"]
    metrics: dict[str, float] = {}
    if yields:
        metrics["val_barge_ins"] = float(len(yields))
        metrics["val_barge_in_success"] = 100 * sum(barge_in.success for barge_in in yields) / len(yields)
        stops_s = [math.inf if b.stop_s is None else b.stop_s - b.start_s for b in yields]
        median_s = float(np.median(stops_s))
        if math.isfinite(median_s):
            metrics["val_barge_in_stop_s_median"] = median_s
    if keeps:
        metrics["val_false_stops"] = 100 * sum(not barge_in.success for barge_in in keeps) / len(keeps)
    return metrics
