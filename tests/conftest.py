"""Settings of all tests."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No test asks a hub, where a machine without network waits half a minute for each name. Before anything imports it.
os.environ["HF_HUB_OFFLINE"] = "1"
# As many test processes as cores run beside each other (pytest -n): more threads than that wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # likewise; more are processes that import torch first
# All on the CPU: NeMo moves its models to a GPU that it sees, and then no test can fork. S2S_TEST_ON_GPU=1 shows it to
# the tests that are run by name.
if not os.environ.get("S2S_TEST_ON_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The same examples each time, and no time limit: a test that fails on a busy machine only says nothing.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

# A file's tests run in one process: those that take longest begin first, and no core idles at the end.
LONGEST = (
    "s2s_train/test_slurm",
    "s2s_train/test_calibrate",
    "s2s_model/test_parallel",
    "s2s_train/test_end_to_end",
    "s2s_model/test_resharding",
    "test_demo",
    "s2s_train/test_cut_in_three",
    "s2s_train/test_signals",
    "s2s_train/test_typos",
    "benchmarks/test_gpu_fit",
    "benchmarks/test_gpu_nemo",
    "s2s_model/test_local_attention",
    "s2s_model/test_session",
    "s2s_data/test_loader",
    "s2s_eval/test_quality",
    "s2s_eval/test_ranks",
    "recipes/test_talk_recipe",
    "s2s_eval/test_known_ceiling",
    "s2s_eval/test_report_in_browser",
)

# Tests of modules with one of these wait for processes beside them, and on a busy machine one may miss another: gloo's
# ranks didn't meet once in ten runs of all tests. Where one fails it is tried once more, and the summary says why.
BESIDE = {"Browser", "Cluster", "fit_on_ranks", "multiprocessing", "run_on_ranks", "subprocess"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [name for name in LONGEST if not (config.rootpath / "tests" / f"{name}.py").is_file()]
    assert not missing, f"LONGEST in tests/conftest.py names what isn't there: {missing}"
    places = {str(config.rootpath / "tests" / f"{name}.py"): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))
    for item in items:
        if isinstance(item, pytest.Function) and BESIDE & vars(item.module).keys():
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"tried once more: {report.nodeid}")
        terminalreporter.line(report.longreprtext)


@pytest.fixture(autouse=True, scope="module")
def collections_pass_over_what_is_imported() -> None:
    """NeMo, torch and the like are 770,000 objects: half a second each time, and more in a fork that copies them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """Lightning leaves one where it trained on several processes; its threads hang what a later test forks."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
