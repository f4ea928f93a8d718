"""What every table of measurements says of the machine it was made on."""

from __future__ import annotations

import platform
from pathlib import Path


def machine() -> str:
    """Returns the name of the processor, as far as the system tells it."""
    facts = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (facts.read_text().splitlines() if facts.exists() else [])
        if line.startswith("model name")
    ]
    return f"{names[0]}, {len(names)} CPUs" if names else platform.machine()
