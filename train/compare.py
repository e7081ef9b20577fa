"""What changed between two evaluations, and whether it is more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# Two-sided 95 % quantiles of Student's t by degrees of freedom, from 1 on; beyond, see `t_quantile`.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def t_quantile(freedom: float) -> float:
    """How many standard errors a 95 % interval reaches, with so many degrees of freedom, 1 or more."""
    if freedom < len(T_QUANTILES) + 1:
        return T_QUANTILES[max(1, int(freedom + 1e-9)) - 1]  # whole numbers may come a rounding error short
    return 1.96 + 2.5 / freedom


def compare_results(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Differences, other minus one, of all figures that both have.

    Where both looked at the same episodes the differences of each episode count, which takes out how hard it is; a
    figure of all episodes together, such as FVD, has only its seeds to tell the noise. Without either, nobody knows.

    Args:
        one: facts and results, see `farworld.train.report.read_results`.
        other: likewise.

    Returns:
        Rows: result, figure, both values, difference, ± (half of its 95 % interval, or None), and noise, what can be
        said: "more than noise", "within noise" or "unknown".

    Raises:
        ValueError: they have no result in common.
    """
    pairs = _pairs(one["results"], other["results"])
    if not pairs:
        names = [", ".join(result["name"] for result in values["results"]) for values in (one, other)]
        raise ValueError(f"nothing to compare: one has {names[0]}; the other has {names[1]}")
    rows = []
    for a, b in pairs:
        paired = a.get("episodes") == b.get("episodes") and a.get("episodes") is not None
        for figure, before in a["summary"].items():
            after = b["summary"].get(figure)
            if not isinstance(before, (int, float)) or not isinstance(after, (int, float)):
                continue
            reach = _reach(*(result.get("scores", {}).get(figure) for result in (a, b)), paired=paired)
            difference = after - before
            said = "unknown" if reach is None else "more than noise" if abs(difference) > reach else "within noise"
            name = a["name"] if a["name"] == b["name"] else f"{a['name']} → {b['name']}"
            rows.append(
                {
                    "result": name, "figure": figure, "one": before, "other": after, "difference": difference,
                    "±": reach, "noise": said,
                }
            )  # fmt: skip
    return rows


def _pairs(ours: list[Mapping[str, Any]], theirs: list[Mapping[str, Any]]) -> list[tuple]:
    """Results of the same name; or the only ones, whatever they are called."""
    by_name = {result["name"]: result for result in theirs}
    pairs = [(result, by_name[result["name"]]) for result in ours if result["name"] in by_name]
    return pairs or ([(ours[0], theirs[0])] if len(ours) == len(theirs) == 1 else [])


def _reach(one: list | None, other: list | None, *, paired: bool) -> float | None:
    """Half of the 95 % interval of the difference of two figures (S, E) each; None if they don't tell."""
    if one is None or other is None:
        return None
    a, b = np.array(one, float), np.array(other, float)
    if a.shape[1] == 1 or b.shape[1] == 1:  # of all episodes together
        a, b, paired = a.ravel(), b.ravel(), False
    else:
        a, b = a.mean(axis=0), b.mean(axis=0)
    if paired:
        return _interval([b - a])
    return _interval([a, b])


def _interval(samples: list[np.ndarray]) -> float | None:
    """Of the sum or difference of the samples' means; degrees of freedom after Welch and Satterthwaite."""
    if any(len(values) < 2 for values in samples):
        return None
    squares = [float(values.var(ddof=1)) / len(values) for values in samples]
    if not sum(squares):
        return 0.0
    freedom = sum(squares) ** 2 / sum(s**2 / (len(v) - 1) for s, v in zip(squares, samples, strict=True))
    return t_quantile(freedom) * math.sqrt(sum(squares))
