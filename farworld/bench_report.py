"""`farworld bench report`: recorded figures as a table and a plot."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from farworld.console import print_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT_FILE = "report.md"
PLOT_FILE = "speed.png"
NEEDS_MATPLOTLIB = 'a plot needs matplotlib: pip install "farworld[report]", or leave out --out for the table alone'
# The columns of the table, and the fields that are in them.
COLUMNS = {
    "what": ("bench",),
    "frames": ("frame_size",),
    "device": ("device", "backend"),
    "streams": ("batch_size",),
    "steps": ("steps",),
    "context": ("context_frames",),
    "layout": ("layout",),
    "fps": ("fps",),
    "median, p95, p99 ms": ("median_ms", "p95_ms", "p99_ms"),
    "CPU ms": ("cpu_ms",),
    "first frame after loading, reset ms": ("load_to_first_frame_ms", "reset_to_first_frame_ms"),
    "memory, GPU MB": ("peak_memory_mb", "gpu_memory_mb"),
    "GFLOP a frame": ("flops_per_frame",),
    "of the matmul rate": ("flops_utilisation",),
}
NEEDED = ("bench", "fps", "median_ms", "curve")


def report(
    paths: Annotated[list[Path], Parameter(help="Files that --record wrote, or folders of such *.jsonl files.")],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help=f"Write {REPORT_FILE} and {PLOT_FILE} into this folder; made if need be.")
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")] = False,
) -> None:
    """Make a Markdown table of recorded figures and, with --out, a plot.

    The plot has frames a second against the length of the context, and the cost of frames against their number.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out expects a folder, got the file {out}")
    records = read_records(paths)
    text = markdown(records)
    if out is not None:
        figure = draw(records)
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / PLOT_FILE, dpi=120)
        text += f"\n![Frames a second against context, and the cost of frames against their number]({PLOT_FILE})\n"
        (out / REPORT_FILE).write_text(text, encoding="utf-8")
    if json:
        print_json({"records": len(records), "report": out and out / REPORT_FILE, "plot": out and out / PLOT_FILE})
    else:
        print(text if out is None else f"{len(records)} records -> {out / REPORT_FILE}, {out / PLOT_FILE}")


def read_records(paths: list[Path]) -> list[dict[str, Any]]:
    """The records in these files and in the *.jsonl files of these folders, in order.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: no record at all, or a line that is none.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no records at {path}; write some with: farworld bench play --record {path}")
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    records = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if line.strip():
                records.append(_read_record(line, f"{file}, line {number}"))
    if not records:
        raise ValueError(f"no records in {', '.join(map(str, paths))}; write some with `farworld bench play --record`")
    return records


def _read_record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: expected a line of JSON: {error}") from error
    missing = [name for name in NEEDED if name not in record] if isinstance(record, dict) else ["an object"]
    if missing:
        raise ValueError(
            f"{place} is no record of `farworld bench play` or `bench env`: it lacks {', '.join(missing)}; "
            "write one with --record"
        )
    return record


def markdown(records: list[dict[str, Any]]) -> str:
    """A table, and below it what its rows do not say: where the time goes, and the conditions."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    rows += [[name_of(record), *(_cell(record, fields) for fields in list(COLUMNS.values())[1:])] for record in records]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    parts = list(dict.fromkeys(part for record in records for part in record.get("breakdown_ms") or {}))
    if parts:
        lines += ["", "Mean milliseconds of the parts of a frame, measured apart:", ""]
        lines += ["| " + " | ".join(["what", *parts]) + " |", "|" + " --- |" * (len(parts) + 1)]
        for record in records:
            if breakdown := record.get("breakdown_ms"):
                cells = [str(breakdown.get(part, "")) for part in parts]
                lines.append("| " + " | ".join([name_of(record), *cells]) + " |")
    conditions = dict.fromkeys(
        f"- {record.get('hardware')}, torch {record.get('torch')}, commit {record.get('commit')}: "
        f"{record['bench']}, {record.get('measured')}"
        for record in records
    )
    return "\n".join([*lines, "", *conditions]) + "\n"


def name_of(record: dict[str, Any]) -> str:
    """What a record is about: the world's or the environment's name."""
    return f"{record['bench']} {record.get('world') or record.get('env')}"


def _cell(record: dict[str, Any], fields: tuple[str, ...]) -> str:
    values = [record.get(field) for field in fields]
    if fields == ("flops_per_frame",) and values[0]:
        return f"{values[0] / 1e9:.2f}"
    if fields == ("flops_utilisation",) and values[0]:
        return f"{values[0]:.0%}"
    return ", ".join("" if value is None else str(value) for value in values).strip(", ")


def draw(records: list[dict[str, Any]]) -> Figure:
    """Frames a second against the length of the context, and the cost of frames against their number.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(NEEDS_MATPLOTLIB) from error

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    speed, cost = figure.subplots(1, 2)
    _draw_speed(speed, records)
    for record in records:
        cost.plot(*zip(*record["curve"], strict=True), linewidth=1.2, label=_label(record, with_context=True))
    usual = max(statistics.median(ms for _, ms in record["curve"]) for record in records)
    # A first frame may take seconds, and would hide the others.
    cost.set(xlabel="frame since the start", ylabel="milliseconds a frame", ylim=(0, 3 * usual))
    for axes in (speed, cost):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def _draw_speed(axes: Axes, records: list[dict[str, Any]]) -> None:
    """Learned worlds as lines over the context; a real environment, which has none, as a level."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record.get("context_frames"):
            lines.setdefault(_label(record), []).append((record["context_frames"], record["fps"]))
        else:
            axes.axhline(record["fps"], linestyle="--", linewidth=1, color="gray", label=_label(record))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set(xlabel="frames of context", ylabel="frames a second", yscale="log")


def _label(record: dict[str, Any], *, with_context: bool = False) -> str:
    """A record's name and settings, without the context, which may be an axis."""
    label = name_of(record)
    if record.get("steps"):
        label += f", steps {record['steps']}, {record['layout']}, {record['device']}"
        if record.get("backend") not in (None, "torch"):
            label += f" by {record['backend']}"
    if record.get("batch_size", 1) > 1:
        label += f", {record['batch_size']} streams"
    if with_context and record.get("context_frames"):
        label += f", context {record['context_frames']}"
    return label
