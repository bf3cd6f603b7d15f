"""What all benchmarks share: the machine they ran on, and their rows as text or as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from whisper_byoc.processors.machine import available_cpus

__all__ = ["Row", "emit", "machine", "table"]

Row = Mapping[str, object]
"""Column name -> cell; floats are shown with three significant digits, None as a blank, booleans as yes or no."""


def machine() -> dict[str, str | int | float]:
    """Describe the machine: figures without it say nothing."""
    return {
        "cpu": cpu_model(),
        "cores": available_cpus(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".rstrip(", "),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_before": round(os.getloadavg()[0], 1),
    }


def cpu_model() -> str:
    """Return the CPU's name, as /proc/cpuinfo or else the platform has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def cell(value: object) -> str:
    """Format one value for a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Lay rows out under `columns` (default: all there are, as they first appear); numbers to the right."""
    names = list(columns if columns is not None else dict.fromkeys(name for row in rows for name in row))
    lines = [names] + [[cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [any(isinstance(row.get(name), (int, float)) for row in rows) for name in names]
    return "\n".join(
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def emit(benchmark: str, tables: Mapping[str, Sequence[Row]], *, as_json: bool, about: Row | None = None) -> None:
    """Print the tables under their titles, or all as one JSON object in a line.

    `about` is the description of the machine taken before the run (default: taken now).
    """
    host = dict(machine() if about is None else about)
    if as_json:
        print(json.dumps({"benchmark": benchmark, "machine": host, "tables": tables}))
        return
    print(benchmark)
    print(", ".join(f"{key} {value}" for key, value in host.items()))
    for title, rows in tables.items():
        print(f"\n{title}\n{table(rows)}")
