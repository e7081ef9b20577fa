"""What the commands of the benchmarks have in common."""

from __future__ import annotations

import json as json_format
import subprocess
import sys
from typing import Any

import torch
from cyclopts import App, CycloptsError

from farworld.bench import commit_of_checkout
from farworld.device import describe_hardware


def run(app: App) -> None:
    """Run a command line, which may return an exit code; an expected error is one line and exit code 2."""
    try:
        if code := app(sys.argv[1:], exit_on_error=False, print_error=False):
            sys.exit(code)
    except (CycloptsError, ImportError, OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table, headed as the first one; of a row that says why it cannot be had, that."""
    headings = list(rows[0])
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        cells = [row.get(heading, "") for heading in headings] if "unavailable" not in row else list(row.values())
        print("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")


def publish(facts: dict[str, Any], rows: list[dict[str, Any]], *, device: torch.device, json: bool) -> None:
    """Print what was measured and on which machine, and with `json` all of it as one object in the last line."""
    facts |= {"hardware": describe_hardware(device), "torch": torch.__version__, "commit": commit_of_checkout()}
    print()
    for name, fact in facts.items():
        print(f"{name:<14} {fact}")
    if json:
        print(json_format.dumps({**facts, "rows": rows}))
