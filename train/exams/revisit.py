"""Exam: does the dream still know what it was shown?

A walk looks all around once, goes some steps straight ahead, comes back the same way, and looks all around once more.
The predictor sees the true frames up to the farthest point and dreams the rest, in which every frame was seen before:
on the way back 2, 4, 6, … frames ago, in the last circle as long ago as the whole walk takes. With no steps out it is
two circles on the spot. A world that cannot walk backwards comes back turned around: that way back is new to it.

Walks are taken only where the real environment says that they are such: nothing in the way, and the way back shows
the pictures of the way out in reverse. PSNR and SSIM against the true frames stand beside

- the same model with a short memory, which is shown only the last frames that this holds, since what older ones left
  in the cache would reach it through their tokens: the difference is what memory gains;
- the last true frame, held;
- the context's best frame: what whoever remembers everything could copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from farworld.envs.environments import PixelEnv
from farworld.train.evaluate import MAX_PSNR, ssim
from farworld.train.exams.walks import (
    BACKWARD,
    EXAM_SEED,
    FORWARD,
    LEFT,
    SAME_PSNR,
    Advance,
    ExamResult,
    Walks,
    best_frames,
    dream,
    find_action,
    find_walks,
    frame_psnr,
    is_same_view,
    need_action,
    nobody,
    numbers,
    plot,
    rounded,
    side_by_side,
    turns_of_a_circle,
)
from farworld.train.prediction import Predictor

NEVER = -1  # in place of a frame's number
SHORT_MEMORY_FRAMES = 16  # that the predictor with a short memory is given at most
WHY = "the revisit exam"


def short_memory_frames(env: PixelEnv, window: int) -> int:
    """Frames of the short memory: too few to hold a circle, but never fewer than the short-term window."""
    return max(window, min(SHORT_MEMORY_FRAMES, turns_of_a_circle(env) - 1))


def num_frames(env: PixelEnv, steps_out: Sequence[int]) -> int:
    """Frames that one predictor dreams of one stream."""
    turns, names = turns_of_a_circle(env), env.spec.action_vocabulary
    half_circles = turns if find_action(names, BACKWARD) is None else 0
    return sum(steps + (half_circles if steps else 0) + turns for steps in steps_out)


def revisit(
    predictor: Predictor,
    env: PixelEnv,
    *,
    streams: int,
    short_memory: Predictor | None = None,
    short_frames: int = SHORT_MEMORY_FRAMES,
    steps_out: Sequence[int] = (0, 4, 12),
    seed: int = EXAM_SEED,
    noise_seed: int = 0,
    advance: Advance = nobody,
) -> ExamResult:
    """Examine the memory of a predictor.

    Args:
        predictor: of `streams` streams.
        env: the real world.
        streams: walks that are taken at once, each in a world of its own.
        short_memory: the same with a short context.
        short_frames: the last true frames, which are all that it is shown.
        steps_out: of each walk that is examined; 0 is looking around twice.
        seed: the first that is tried for a walk.
        noise_seed: of the predictors.
        advance: told the number of frames dreamed.

    Raises:
        ValueError: the world cannot turn or walk, or no such walks are found.
    """
    if not steps_out or min(steps_out) < 0:
        raise ValueError(f"--steps-out must be numbers of 0 or more, got {list(steps_out)}")
    rows: list[dict[str, Any]] = []
    series: dict[str, list[float]] = {}
    videos: dict[str, np.ndarray] = {}
    plots: list[dict[str, Any]] = []
    turns = turns_of_a_circle(env)
    for steps in steps_out:
        walks = find_round_trips(env, steps, streams, seed)
        context = turns + steps + 1
        truth = walks.frames[:, context:]
        back = truth.shape[1] - turns
        # The context's frames that are seen again: those of the way out backwards, then the first circle's.
        seen = np.array(
            [*(range(context - 2, turns - 1, -1) if back == steps else [NEVER] * back), *range(1, turns + 1)]
        )
        dreams = {
            name: dream(who, walks.frames[:, first:context], walks.actions[:, first:], seed=noise_seed, advance=advance)
            for name, who, first in (
                ("dream", predictor, 0), ("short_memory", short_memory, max(0, context - short_frames))
            )
            if who is not None
        }  # fmt: skip
        guesses = {
            **dreams,
            "copy_last": np.broadcast_to(walks.frames[:, context - 1 : context], truth.shape),
            "best_context_frame": best_frames(walks.frames[:, :context], truth),
        }
        scores = {name: frame_psnr(guess, truth) for name, guess in guesses.items()}
        age = np.where(seen == NEVER, 0, np.arange(context, walks.frames.shape[1]) - seen)
        label = f"{steps} steps out" if steps else "on the spot"
        series[f"frames since seen, {label}"] = numbers(age)
        for name, values in scores.items():
            series[f"{name}.PSNR, {label}"] = numbers(values.mean(axis=0))
        # The circle's last frame is left out: on the spot it is the one on the screen when the dream began.
        for phase, part in (("way back", slice(0, back)), ("circle", slice(back, -1))):
            if not truth[:, part].shape[1]:
                continue
            rows.append(_row(steps, phase, age[part], {n: v[:, part] for n, v in scores.items()}, dreams, truth, part))
            lines = {name: numbers(scores[name][:, part].mean(axis=0)) for name in (*dreams, "copy_last")}
            x, x_label = np.arange(1, age[part].size + 1), "frame"
            if phase == "way back" and back == steps:
                x, x_label = age[part], "frames since seen"
            plots.append(plot(f"{phase}, {label}", lines, numbers(x), x_label, "PSNR, dB"))
        videos[f"revisit, {label}"] = side_by_side(truth[0], *(drawn[0] for drawn in dreams.values()))
    notes = [
        f"{streams} walks each, seeds from {seed} on; a circle is {turns} turns; true frames up to the farthest point, "
        "the others dreamed; 0 frames since seen stands for never",
        f"a PSNR of {MAX_PSNR:g} is an exact copy; walks whose way back is not the way out within {SAME_PSNR:g} dB are "
        "left out; the table leaves out the last frame of the circle, which is the walk's first view",
        "videos: truth, dream" + (", dream with a short memory" if short_memory is not None else ""),
    ]
    report = {"name": "revisit", "summary": _summary(rows), "series": series, "table": rows, "notes": notes}
    return ExamResult({**report, "plots": plots}, videos)


def find_round_trips(env: PixelEnv, steps: int, streams: int, seed: int) -> Walks:
    """Walks of a circle, some steps out, as many back, and a circle; what is seen on the way out is seen again.

    Raises:
        ValueError: the world has no such walks.
    """
    vocabulary, turns = env.spec.action_vocabulary, turns_of_a_circle(env)
    left = need_action(vocabulary, LEFT, WHY)
    circle, out, back = [left] * turns, [], []
    backward = find_action(vocabulary, BACKWARD)
    if steps:
        out = [need_action(vocabulary, FORWARD, WHY)] * steps
        if backward is None and turns % 2:
            raise ValueError(
                f"{WHY} comes back walking backwards, or by half a circle; only --steps-out 0 is left here"
            )
        back = [left] * (turns // 2) + out + [left] * (turns // 2) if backward is None else [backward] * steps

    def suits(frames: np.ndarray) -> bool:
        start, farthest, end = turns, turns + steps, turns + steps + len(back)
        moves = (frames[1 : farthest + 1] != frames[:farthest]).any(axis=(1, 2, 3)).all()
        walks_back = backward is not None and steps > 0
        retraced = not walks_back or is_same_view(frames[farthest + 1 : end + 1][::-1], frames[start:farthest])
        return bool(moves and retraced and is_same_view(frames[end:], frames[: turns + 1]))

    what = f"{steps} free steps ahead and the same way back" if steps else "a full circle that ends where it began"
    return find_walks(env, [*circle, *out, *back, *circle], streams, seed, suits, what)


def _row(
    steps: int,
    phase: str,
    age: np.ndarray,
    scores: dict[str, np.ndarray],
    dreams: dict[str, np.ndarray],
    truth: np.ndarray,
    part: slice,
) -> dict[str, Any]:
    facts: dict[str, Any] = {"steps_out": steps, "phase": phase, "frames_since_seen": float(age.mean())}
    facts |= {f"{name}_psnr": float(values.mean()) for name, values in scores.items()}
    for name, drawn in dreams.items():
        pair = (torch.from_numpy(x[:, part].copy()).flatten(0, 1) for x in (drawn, truth))
        facts[f"{name}_ssim"] = float(ssim(*pair).mean())
    if "short_memory_psnr" in facts:
        facts["gain_db"] = facts["dream_psnr"] - facts["short_memory_psnr"]
    return rounded(facts)


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The circle of the shortest walk is the full turn: everything was just seen. Then the longest walk."""
    first = next(row for row in rows if row["phase"] == "circle")
    summary = {f"full_turn_{name}": value for name, value in first.items() if name not in ("steps_out", "phase")}
    for name, phase in (("way_back", "way back"), ("last_circle", "circle")):
        row = next((row for row in reversed(rows) if row["phase"] == phase and row is not first), None)
        if row is not None:
            keys = ("dream_psnr", "short_memory_psnr", "copy_last_psnr", "gain_db")
            summary |= {f"{name}_{key}": row[key] for key in keys if key in row}
    return summary
