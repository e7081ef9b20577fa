"""Brings a recipe's run home through a narrow door: few files, none large.

    python benchmarks/gpu/parcel.py pack RUN OUT          there
    python benchmarks/gpu/parcel.py unpack OUT RUN        here
    python benchmarks/gpu/parcel.py compare WORLD WORLD   plays both, headless, under the same keys

What is packed, the most wanted first: the world or, of an unfinished run, `so-far`; scores, orders and logs; samples.
Exported weights are the averaged ones, matrices in float16, and travel as they are. What does not fit is left out and
named.
"""

from __future__ import annotations

import hashlib
import io
import json as json_format
import sys
import tarfile
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

PART_BYTES = 15 * 2**20
MOST_BYTES = 60 * 2**20  # of all parts; what the door lets through is a little more
NAME = "parcel"
WANTED = (
    "world/*", "so-far/*", "*.json", "*/logs/*.jsonl", "*/commands.txt", "*/run.json", "*/failed_step*.json",
    "*/samples/*.png", "base/world/*",
)  # fmt: skip

app = App(name="parcel", help="Pack, unpack and compare what a recipe makes.")


def wanted_files(run: Path) -> list[Path]:
    """The files of a run that are packed, the most wanted first; of samples the newest first."""
    files: dict[Path, None] = {}
    for pattern in WANTED:
        files |= dict.fromkeys(path for path in sorted(run.glob(pattern), reverse=True) if path.is_file())
    return list(files)


@app.command
def pack(
    run: Path,
    out: Path,
    *,
    part_bytes: Annotated[int, Parameter(help="Of each file, at most.")] = PART_BYTES,
    most_bytes: Annotated[int, Parameter(help="Of all files together, at most.")] = MOST_BYTES,
    report: Annotated[Path | None, Parameter(help="A file of JSON lines whose last one is passed on.")] = None,
) -> None:
    """Pack a run into files parcel-NAME-0 and so on in OUT, and print one line of JSON."""
    chosen, left_out, total = [], [], 0
    for path in wanted_files(run):
        size = path.stat().st_size + 2 * tarfile.BLOCKSIZE
        if total + size > most_bytes - tarfile.RECORDSIZE:
            left_out.append(path.relative_to(run).as_posix())
            continue
        chosen.append(path)
        total += size
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in chosen:
            archive.add(path, path.relative_to(run).as_posix())
    content = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{NAME}-{run.name}-*"):
        old.unlink()
    parts = [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]
    for number, part in enumerate(parts):
        (out / f"{NAME}-{run.name}-{number}").write_bytes(part)
    lines = report.read_text(encoding="utf-8").splitlines() if report and report.is_file() else []
    facts = {"parts": len(parts), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    print(json_format.dumps({
        "parcel": {**facts, "files": len(chosen), "left_out": left_out},
        **(json_format.loads(lines[-1]) if lines else {}),
    }))  # fmt: skip


@app.command
def unpack(out: Path, run: Path, *, sha256: str | None = None) -> None:
    """Put the parts of OUT together again in RUN, and print one line of JSON.

    Raises:
        ValueError: there are no parts, or of several runs, or one is missing or damaged.
    """
    parts = sorted(out.glob(f"{NAME}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    names = {path.name.rpartition("-")[0] for path in parts}
    if len(names) != 1 or [int(path.name.rpartition("-")[2]) for path in parts] != list(range(len(parts))):
        found = ", ".join(path.name for path in parts) or "none"
        raise ValueError(f"expected the files {NAME}-NAME-0, -1 and so on of one run in {out}, found {found}")
    content = b"".join(path.read_bytes() for path in parts)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise ValueError(f"the parts in {out} have sha256 {digest}, not {sha256}; a part is missing or damaged")
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(run, filter="data")
    print(json_format.dumps({"run": str(run), "files": sum(path.is_file() for path in run.rglob("*"))}))


@app.command
def compare(first: str, second: str, *, frames: int = 40) -> None:
    """Play two worlds under the same keys, and print the largest difference of their frames as one line of JSON.

    Raises:
        ValueError: they differ by more than bfloat16 would explain, 8 grey levels of 255.
    """
    import numpy as np

    from farworld.checkpoint import load_world
    from farworld.rollout import Rollout

    worlds = [load_world(name) for name in (first, second)]
    largest, shown = 0, []
    for world in worlds:
        rollout, start = Rollout(world.model), world.contexts[0]
        rollout.prime(start.frames[None], start.actions[None])
        keys = np.random.default_rng(0).integers(len(world.config.vocabulary), size=frames)
        shown.append(np.stack([rollout.step(int(key))[0] for key in keys]).astype(int))
    largest = int(np.abs(shown[0] - shown[1]).max())
    print(json_format.dumps({"frames": frames, "largest_difference": largest, "std": float(shown[0].std())}))
    if largest > 8:
        raise ValueError(f"the worlds play differently: {largest} of 255 grey levels apart")


def main() -> None:
    """Run the command; an expected error is one line and exit code 2."""
    try:
        app(exit_on_error=False, print_error=False)
    except (CycloptsError, ValueError, OSError) as error:
        print(f"parcel: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
