"""The figures of `benchmarks.gpu_nemo` in Markdown."""

from __future__ import annotations

from typing import Any


def tables(shown: dict[str, Any]) -> str:
    """All sections in Markdown."""
    parts = [_agreement_table(shown), _train_table(shown), _parts_table(shown), _decode_table(shown)]
    parts += [_live_table(shown), _validation_table(shown)]
    failed = [f"FAILED {what}" for what in shown.get("failed", [])]
    return "\n\n".join(["", *filter(None, parts), *failed])


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def _agreement_table(shown: dict[str, Any]) -> str:
    rows = shown.get("agreement", {}).get("rows", [])
    keys = ["case", "figure", "nemo", "ours", "difference", "tolerance"]
    return _table(keys, [[row[key] for key in keys] for row in rows]) if rows else ""


def _train_table(shown: dict[str, Any]) -> str:
    cases = shown.get("derived", {}).get("train", [])
    nemo = {each["case"]: each for each in cases if each["who"] == "nemo"}
    rows = []
    for each in cases:
        theirs = nemo.get(each["case"], {})
        name = [each["case"], each["who"], each["agent"]]
        if "ms" not in each:
            rows.append([*name, "out of memory", None, None, None, None, each["peak_gib"], None, None])
            continue
        rows.append(
            [
                *name,
                each["ms"],
                each.get("floor_ms"),
                each["audio_s_per_s"],
                each["frames_per_s"],
                each.get("mfu"),
                each["peak_gib"],
                _ratio(theirs.get("ms"), each["ms"]),
                _ratio(each["peak_gib"], theirs.get("peak_gib")),
            ]
        )
    header = ["batch", "who", "agent", "ms", "floor ms", "audio-s/s", "frames/s", "MFU", "peak GiB", "x NeMo's speed"]
    return _table([*header, "x NeMo's memory"], rows) if rows else ""


def _parts_table(shown: dict[str, Any]) -> str:
    columns = {
        f"{who}, {stored}": figures
        for who in ("nemo", "ours")
        for stored, figures in shown.get(who, {}).get("parts", {}).items()
    }
    if not columns:
        return ""
    names = list(dict.fromkeys(part for figures in columns.values() for part in figures["parts_ms"]))
    rows = [[name, *(figures["parts_ms"].get(name) for figures in columns.values())] for name in names]
    rows.append(["step", *(figures["step_ms"] for figures in columns.values())])
    return _table(["ms a step", *columns], rows)


def _decode_table(shown: dict[str, Any]) -> str:
    nemo, ours = (shown.get(who, {}).get("decode", {}) for who in ("nemo", "ours"))
    per_frame = {
        case: [each.get(case, {}).get("ms_per_frame") for each in (nemo, ours)]
        for case in dict.fromkeys([*nemo, *ours])
    }
    floor_ms = shown.get("derived", {}).get("frame_floor_ms")
    rows = [[case, *both, floor_ms, _ratio(*both)] for case, both in per_frame.items()]
    return _table(["decode", "NeMo ms/frame", "ours ms/frame", "floor", "x NeMo's speed"], rows) if rows else ""


def _live_table(shown: dict[str, Any]) -> str:
    live = shown.get("ours", {}).get("live")
    if not live:
        return ""
    rows = [[name.replace("_", " "), *live[name].values()] for name in ("first_minute", "last_minute")]
    memory = {name: each and each["allocated"] for name, each in live["memory_mib"].items()}
    heard = f"{live['seconds_heard']} s heard; MiB of tensors: {memory}"
    return _table(["live session, a push of 80 ms", "median ms", "p99 ms", "max ms"], rows) + f"\n\n{heard}"


def _validation_table(shown: dict[str, Any]) -> str:
    nemo = shown.get("nemo", {}).get("validation", {}).get("audio", {}).get("s")
    rows = [
        [f"{who}, {stored}", figures["dialogues"], figures["s"], _ratio(nemo, figures["s"])]
        for who in ("nemo", "ours")
        for stored, figures in shown.get(who, {}).get("validation", {}).items()
    ]
    return _table(["validation", "dialogues", "s", "x NeMo's speed"], rows) if rows else ""


def _ratio(over: float | None, under: float | None) -> float | None:
    return round(over / under, 2) if over and under else None
