"""Results of evaluations as one page that needs nothing else: tables, plots and videos inside the file.

A result, whatever exam it is of, is a dict ready for JSON: `name`; `summary`, a number by metric; `series`, numbers by
name, drawn as lines (names that end alike, as in `teco.psnr` and `far.psnr`, in one plot, with the title that `labels`
has for the end, if any); `table`, rows by column;
`notes`, sentences; and `plots`, if it has any of its own: the arguments of `farworld.line_plot.line_plot`.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from farworld.console import json_line
from farworld.line_plot import line_plot
from farworld.video import encode_mp4

DATA_BEGINS = '<script type="application/json" id="farworld-results">'
DATA_ENDS = "</script>"
SHOWN_HEIGHT = 192  # pixels that small videos are enlarged to, at least
VIDEO_FPS = 8.0
VIDEO_CRF = 22  # a page of four videos of 156 frames takes about 5 MB
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, td.text { text-align: left; }
th { background: var(--soft); }
code { background: var(--soft); padding: .1rem .3rem; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
video { image-rendering: pixelated; max-width: 100%; }
.wide { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
"""


def conditions(device: Any) -> dict[str, Any]:
    """What every result depends on: the command, the version, the machine.

    Args:
        device: torch's, where the model runs.
    """
    import torch

    from farworld import __version__
    from farworld.bench import commit_of_checkout
    from farworld.device import describe_hardware

    return {
        "command": shlex.join(["farworld", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit_of_checkout(),
        "farworld": __version__,
        "hardware": describe_hardware(device),
        "torch": torch.__version__,
    }


def write_report(
    path: Path,
    title: str,
    facts: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    videos: Mapping[str, np.ndarray] | None = None,
    *,
    videos_show: str = "From left to right: truth, dream, and their difference (grey is none).",
) -> None:
    """Write the page.

    Args:
        path: the file.
        title: of the page.
        facts: what the results depend on, the command among them; ready for JSON.
        results: see the module.
        videos: (F, H, W, 3), uint8, by name.
        videos_show: what is seen in them.
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        _facts(facts),
        *(_section(result) for result in results),
    ]
    if videos:
        parts.append(f"<h2>Videos</h2><p>{escape(videos_show)}</p>")
        parts.append(f'<div class="row">{"".join(_video(name, frames) for name, frames in videos.items())}</div>')
    # In a script element only its own end has to be kept from ending it.
    data = json_line({**facts, "results": list(results)}).replace("</", "<\\/")
    parts.append(f"{DATA_BEGINS}{data}{DATA_ENDS}</body></html>\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


def read_results(path: Path) -> dict[str, Any]:
    """The facts and results of a report, or of what `farworld eval --json` printed; or a single result.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}; make some with `farworld eval … --report {path}` or --json")
    text = path.read_text(encoding="utf-8", errors="replace")
    _, begins, rest = text.partition(DATA_BEGINS)
    for candidate in [rest.partition(DATA_ENDS)[0]] if begins else [text, *text.splitlines()[-1:]]:
        with contextlib.suppress(ValueError):
            values = json.loads(candidate)
            if isinstance(values, dict) and isinstance(values.get("results"), list):
                return values
            if isinstance(values, dict) and isinstance(values.get("summary"), dict) and "name" in values:
                return {"results": [values]}
    raise ValueError(f"{path} holds no results; expected a page of `farworld eval --report`, or what --json prints")


def as_text(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def _facts(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        text = ", ".join(map(as_text, value)) if isinstance(value, (list, tuple)) else as_text(value)
        shown = f"<code>{escape(text)}</code>" if name == "command" else escape(text)
        rows.append(f'<tr><td>{escape(name)}</td><td class="text">{shown}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def _section(result: Mapping[str, Any]) -> str:
    parts = [f"<h2>{escape(result['name'])}</h2>"]
    parts += [f"<p>{escape(note)}</p>" for note in result.get("notes", [])]
    rows = list(result.get("table", []))
    if rows:
        parts.append(_table(rows))
    else:
        parts.append(_table([{"": name, "value": value} for name, value in result.get("summary", {}).items()]))
    plots = [line_plot(**plot) for plot in result.get("plots", [])] or _series_plots(result)
    parts.append(f'<div class="row">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>')
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order in which the rows bring them."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        cells = (
            f'<td class="text">{escape(value)}</td>' if isinstance(value, str) else f"<td>{as_text(value)}</td>"
            for value in (row.get(column) for column in columns)
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _series_plots(result: Mapping[str, Any]) -> list[str]:
    groups: dict[str, dict[str, list]] = {}
    for name, values in result.get("series", {}).items():
        first, _, metric = name.rpartition(".")
        groups.setdefault(metric, {})[first or name] = list(enumerate(values, start=1))
    titles = result.get("labels", {})
    return [line_plot(lines, title=titles.get(metric, metric), x_label="frame") for metric, lines in groups.items()]


def _video(name: str, frames: np.ndarray) -> str:
    height, width = frames.shape[1:3]
    # Enlarged in the file, too: codecs halve the resolution of colours. Even sides are what H.264 takes.
    scale = max(1, round(SHOWN_HEIGHT / height))
    frames = np.pad(frames, ((0, 0), (0, height * scale % 2), (0, width * scale % 2), (0, 0)), mode="edge")
    content = base64.b64encode(encode_mp4(np.ascontiguousarray(frames), VIDEO_FPS, scale=scale, crf=VIDEO_CRF)).decode()
    return (
        f"<figure><video controls loop muted autoplay playsinline "
        f'src="data:video/mp4;base64,{content}"></video><figcaption>{escape(name)}</figcaption></figure>'
    )
