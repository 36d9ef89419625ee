"""Settings of all tests."""

import os

from hypothesis import settings

# No test asks a hub, where a machine without network waits half a minute for each name. Before anything imports it.
os.environ["HF_HUB_OFFLINE"] = "1"
# As many test processes as cores run beside each other (pytest -n): more threads than that wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# All on the CPU: NeMo moves its models to a GPU that it sees, and then no test can fork. S2S_TEST_ON_GPU=1 shows it to
# the tests that are run by name.
if not os.environ.get("S2S_TEST_ON_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The same examples each time, and no time limit: a test that fails on a busy machine only says nothing.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
