"""Every run of the tests is the same run: examples come from a fixed seed, and none is judged by its time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("busdma", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("busdma")
