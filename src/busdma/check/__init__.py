"""The DMA checker: a machine whose CPU and devices see different bytes until the right sync, and who tells why.

``busdma.open(spec, check=True)`` has it as ``machine.checker``; ``busdma check SCRIPT`` runs a script under it.
"""

from __future__ import annotations

from busdma.check.checker import Checker
from busdma.check.findings import Finding, Findings, Kind

__all__ = ["Checker", "Finding", "Findings", "Kind"]
