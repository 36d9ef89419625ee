"""Settings of all tests."""

from hypothesis import settings

# The same examples each time, and no time limit: a test that fails on a busy machine only says nothing.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
