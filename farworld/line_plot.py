"""Lines in a coordinate system as SVG text, to stand in a page: no library, nothing to load.

Colours follow the page's: text and axes are drawn in `currentColor`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

COLOURS = ("#2f6fb7", "#d9822b", "#3a9d5d", "#b8433f", "#7d5fb2", "#8a6d4f", "#cf5f9f", "#5f6b76")
MARGIN = (34, 16, 44, 62)  # pixels above, right, below and left of the plot's area
LEGEND_LINE = 18  # pixels
TICKS = 6  # about
LABEL_ROOM = 0.85  # of the width, behind which labels stand at the left of their points


def line_plot(
    lines: Mapping[str, Sequence[Sequence[float | None]]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    marks: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None,
    width: int = 560,
    height: int = 300,
) -> str:
    """Draw lines with axes and a legend.

    Args:
        lines: points (x, y) by the line's name; a line is interrupted where y is None or not finite.
        title: above the plot.
        x_label: below it.
        y_label: at its left.
        log_x: logarithmic in x, all of which must be above 0.
        marks: draw a dot on every point.
        labels: texts beside the points of a line, by its name; needs marks to make sense.
        width: pixels.
        height: pixels, the legend not included.

    Returns:
        One <svg> element.

    Raises:
        ValueError: x not above 0 on a logarithmic axis.
    """
    points = {name: [(x, _finite(y)) for x, y in line if x is not None] for name, line in lines.items()}
    xs = [x for line in points.values() for x, y in line if y is not None]
    ys = [y for line in points.values() for _, y in line if y is not None]
    if log_x and any(x <= 0 for x in xs):
        raise ValueError("a logarithmic axis begins above 0")
    x_low, x_high, x_ticks = _log_axis(xs) if log_x else _axis(xs)
    y_low, y_high, y_ticks = _axis(ys, whole_steps=True)
    top, right, bottom, left = MARGIN
    plot_width, plot_height = width - left - right, height - top - bottom

    def across(x: float) -> float:
        if log_x:
            return left + plot_width * math.log(x / x_low) / math.log(x_high / x_low)
        return left + plot_width * (x - x_low) / (x_high - x_low)

    def down(y: float) -> float:
        return top + plot_height * (1 - (y - y_low) / (y_high - y_low))

    whole = height + LEGEND_LINE * len(points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" width="{width}" height="{whole}" '
        'font-family="sans-serif" font-size="12" fill="currentColor" role="img">',
        f'<text x="{left}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>' if title else "",
    ]
    grid = 'stroke="currentColor" stroke-opacity="0.15"'
    for tick in y_ticks:
        parts.append(f'<path d="M{left} {down(tick):.1f}H{left + plot_width}" {grid}/>')
        parts.append(f'<text x="{left - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_ticks:
        x, below = across(tick), top + plot_height + 16
        parts.append(f'<path d="M{x:.1f} {top}V{top + plot_height}" {grid}/>')
        parts.append(f'<text x="{x:.1f}" y="{below}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<path d="M{left} {top}V{top + plot_height}H{left + plot_width}" fill="none" stroke="currentColor"/>')
    middle = top + plot_height / 2
    if x_label:
        parts.append(
            f'<text x="{left + plot_width / 2:.1f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
        )
    if y_label:
        parts.append(
            f'<text transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )
    for index, (name, line) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        if path := _path(line, across, down):
            parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        beside = list((labels or {}).get(name, []))
        for i, (x, y) in enumerate(line):
            if y is None or not (marks or len(line) == 1):
                continue
            parts.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3.5" fill="{colour}"/>')
            if i < len(beside):
                # At its right, where there is room.
                side, anchor = (6, "start") if across(x) < left + LABEL_ROOM * plot_width else (-6, "end")
                place = f'x="{across(x) + side:.1f}" y="{down(y) - 6:.1f}" text-anchor="{anchor}"'
                parts.append(f"<text {place}>{escape(beside[i])}</text>")
        row = height + LEGEND_LINE * index + 8
        parts.append(f'<path d="M{left} {row - 4}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{left + 24}" y="{row}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _path(
    line: Sequence[tuple[float, float | None]], across: Callable[[float], float], down: Callable[[float], float]
) -> str:
    """The line's segments; a single point between two gaps has none."""
    words, drawing = [], False
    for x, y in line:
        if y is not None:
            words.append(f"{'L' if drawing else 'M'}{across(x):.1f} {down(y):.1f}")
        drawing = y is not None
    return "".join(words)


def _axis(values: Sequence[float], *, whole_steps: bool = False) -> tuple[float, float, list[float]]:
    """Where an axis begins and ends, at ticks or at the outermost values, and its ticks."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high == low:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(base * power for base in (1, 2, 5, 10) if base * power >= rough)
    if whole_steps:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return low, high, [i * step for i in range(first, last + 1)]


def _log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Likewise, with ticks at 1, 2 and 5 times the powers of ten."""
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    low, high = (low / 1.2, high * 1.2) if high > low else (low / 2, high * 2)
    steps = [base * 10.0**power for power in range(-9, 10) for base in (1, 2, 5)]
    return low, high, [step for step in steps if low <= step <= high]


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
