"""What a measurement was made on: the facts that every file in results/ carries."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def machine() -> str:
    """Returns the name of the processor, as far as the system tells it."""
    facts = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (facts.read_text().splitlines() if facts.exists() else [])
        if line.startswith("model name")
    ]
    return f"{names[0]}, {len(names)} CPUs" if names else platform.machine()


def provenance(command: str) -> dict[str, str]:
    """Returns what begins a results file: command, commit, date, machine.

    The commit of a tree without git is the variable BITM_COMMIT, or unknown.
    """
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "command": command,
        "commit": head.stdout.strip() or os.environ.get("BITM_COMMIT", "unknown"),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
    }


def write_results(path: Path, document: dict[str, Any]) -> None:
    """Writes a results file, a list of numbers on one line."""
    text = json.dumps(document, indent=1)
    numbers = re.compile(r"\[[\s\d.,e+-]+\]")
    path.write_text(numbers.sub(lambda m: re.sub(r"\s+", " ", m[0]), text) + "\n")
