"""Simulated machines: no hardware, no dependency, virtual time."""
