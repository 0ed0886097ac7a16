"""Benchmarks: each measures busdma beside a reference in the same run. Not imported by ``import busdma``."""
