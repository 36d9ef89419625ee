"""Which part of the work is this process's, from what SLURM or torchrun put into the environment."""

from collections.abc import Mapping

from s2s_data.errors import DataError


def rank_and_world_size(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return (rank, world size): of a SLURM array's task, else of ``RANK`` and ``WORLD_SIZE``, else (0, 1).

    Raises :class:`DataError` for an array whose tasks aren't numbered evenly, as one is that repeats a few: which
    part a task had can't be told then.
    """
    if "SLURM_ARRAY_TASK_ID" in environ:
        return _of_array(environ)
    if ("RANK" in environ) != ("WORLD_SIZE" in environ):
        raise DataError("of RANK and WORLD_SIZE only one is set: set both, or give --rank and --world-size")
    return _number(environ, "RANK", "0"), _number(environ, "WORLD_SIZE", "1")


def _of_array(environ: Mapping[str, str]) -> tuple[int, int]:
    task, count = _number(environ, "SLURM_ARRAY_TASK_ID"), _number(environ, "SLURM_ARRAY_TASK_COUNT")
    first, step = _number(environ, "SLURM_ARRAY_TASK_MIN", "0"), _number(environ, "SLURM_ARRAY_TASK_STEP", "1")
    last = _number(environ, "SLURM_ARRAY_TASK_MAX", str(first + (count - 1) * step))
    if step < 1 or (task - first) % step or last != first + (count - 1) * step:
        raise DataError(
            f"the SLURM array's {count} tasks from {first} to {last} aren't numbered evenly: give --rank and "
            "--world-size, the ones that the tasks had at first"
        )
    return (task - first) // step, count


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    value = environ.get(name, default)
    if not value.isdecimal():
        raise DataError(f"{name} is {value!r}, but must be a whole number: give --rank and --world-size")
    return int(value)
