"""What ran a benchmark, and what else it had to do."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine(*packages: str) -> dict[str, Any]:
    """The processor or card, its load at this moment, and the versions of torch, transformers and `packages`."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load": list(os.getloadavg()),
        "versions": {name: version(name) for name in ("torch", "transformers", *packages)},
    }


def resident(field: str) -> int:
    """Bytes of this process, such as ``VmRSS`` now and ``VmHWM`` at the most. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
