"""What mutants are put to: small jobs, always the same, which together execute every call.

A job returns what its user sees of it, as words; without a mutant there is no finding. Faults are those that the models
of devices can be told to have. Imported when the drivers' calls are led through the switch: see `mutation.sites`.
"""

from __future__ import annotations

from mutation.jobs import cards, disks, net, nvme
from mutation.jobs.common import JOBS

__all__ = ["JOBS", "cards", "disks", "net", "nvme"]
