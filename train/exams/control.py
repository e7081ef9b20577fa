"""Exam: do the keys do in the dream what they do in the world?

A judge (`farworld.train.exams.inverse_dynamics`) is trained on real frames to read the action from two that follow each
other. What it reads in held-out real episodes is the ceiling; then it reads dreams under random keys. Actions that even
in the real world are taken for each other are told, and merged in the accuracy; what changes nothing in the real world,
such as walking into a wall, counts as idling.

The lag from key to pixel is measured apart, without the judge: random turns and pauses are dreamed, and the lag is
where pressing a key goes most with how much the picture changes. An action taken after frame t produces frame t + 1, so
that it must be 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farworld.envs.environments import PixelEnv
from farworld.train.exams.inverse_dynamics import (
    JudgeTraining,
    balanced_accuracy,
    cached_judge,
    confusion,
    random_actions,
    read_actions,
    readable_actions,
)
from farworld.train.exams.walks import (
    EXAM_SEED,
    FORWARD,
    IDLE,
    LEFT,
    START_FRAMES,
    Advance,
    ExamResult,
    RoundTrip,
    dream,
    find_action,
    need_action,
    nobody,
    numbers,
    plot,
    rounded,
    side_by_side,
    take_walks,
)
from farworld.train.prediction import Predictor

ALIKE = 0.3  # share of mutual mistakes, of 0.5 for actions that nobody can tell apart, from which actions are merged
LARGEST_LAG = 4  # frames
NO_LAG = 0.2  # correlation below which the picture does not follow the keys at all
SIGNIFICANCE = 4.0  # standard errors of a correlation of nothing, which it must also exceed


def alike(counts: np.ndarray) -> np.ndarray:
    """The group of each action, named by its first one: those that are taken for each other in a confusion matrix."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    group = np.arange(len(counts))
    for i in range(len(counts)):
        for j in range(i):
            if (share[i, j] + share[j, i]) / 2 >= ALIKE:
                group[group == group[i]] = group[j]
    return group


def lag_correlation(pressed: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """How pressing a key goes with the picture's change 0, 1, … LARGEST_LAG frames after the one on the screen.

    Args:
        pressed: (B, T), bool, whether action t presses the key.
        frames: (B, T + 1, H, W, 3), uint8; action t is taken after frame t.

    Returns:
        (LARGEST_LAG + 1,), Pearson's correlation; lag 0 is the change that led to the frame on the screen.
    """
    change = np.abs(np.diff(frames.astype(np.int16), axis=1)).mean(axis=(2, 3, 4))  # at t: from frame t to t + 1
    first, last = 1, pressed.shape[1] - LARGEST_LAG  # of the keys for which all lags can be seen
    keys = pressed[:, first:last].astype(np.float64).ravel()
    found = []
    for lag in range(LARGEST_LAG + 1):
        moves = change[:, first - 1 + lag : last - 1 + lag].ravel()
        spread = keys.std() * moves.std()
        found.append(((keys - keys.mean()) * (moves - moves.mean())).mean() / spread if spread > 0 else 0.0)
    return np.array(found)


def control(
    predictor: Predictor,
    env: PixelEnv,
    *,
    streams: int,
    num_frames: int = 32,
    judge_file: Path | None = None,
    training: JudgeTraining | None = None,
    round_trip: RoundTrip | None = None,
    seed: int = EXAM_SEED,
    noise_seed: int = 0,
    advance: Advance = nobody,
) -> ExamResult:
    """Examine whether a predictor heeds its actions.

    Args:
        predictor: of `streams` streams.
        env: the real world.
        streams: dreams, each from a world of its own.
        num_frames: dreamed of each stream.
        judge_file: where the judge is kept; None is the user's cache.
        training: of the judge, if there is none yet.
        round_trip: encodes and decodes frames; what the judge reads in true frames that went through it is the most
            that can be had of a dream.
        seed: of the first world.
        noise_seed: of the predictor.
        advance: told the number of the judge's steps and of frames dreamed.

    Raises:
        ValueError: too few frames, or the world has nothing to control.
    """
    if num_frames < 2 * LARGEST_LAG or streams < 1:
        raise ValueError(f"expected at least {2 * LARGEST_LAG} frames and 1 stream, got {num_frames} and {streams}")
    training = training or JudgeTraining()
    vocabulary = env.spec.action_vocabulary
    noop = find_action(vocabulary, IDLE)
    judge, real = cached_judge(env, seed, training, judge_file, advance)
    group = alike(real)
    seeds, num_actions = range(seed, seed + streams), START_FRAMES - 1 + num_frames
    walks = take_walks(env, seeds, np.stack([random_actions(env, each, num_actions) for each in seeds]))
    labels = np.stack([readable_actions(*walk, noop) for walk in zip(walks.frames, walks.actions, strict=True)])
    labels = labels[:, START_FRAMES - 1 :]
    drawn = dream(predictor, walks.frames[:, :START_FRAMES], walks.actions, seed=noise_seed, advance=advance)
    shown = np.concatenate([walks.frames[:, START_FRAMES - 1 : START_FRAMES], drawn], axis=1)
    read = np.stack([read_actions(judge, frames) for frames in shown])
    readings = {"real": real, "dream": confusion(read, labels, len(vocabulary))}
    if round_trip is not None:
        decoded = [round_trip(torch.from_numpy(frames[START_FRAMES - 1 :])).numpy() for frames in walks.frames]
        seen = np.stack([read_actions(judge, frames) for frames in decoded])
        readings["decoded"] = confusion(seen, labels, len(vocabulary))
    lags, lag_walk = _measure_lag(predictor, env, streams, num_frames, seed, noise_seed, advance)
    by_chance = SIGNIFICANCE / np.sqrt(streams * (num_frames - LARGEST_LAG))
    lag = int(lags.argmax()) if lags.max() >= max(NO_LAG, by_chance) else None
    right = (group[read] == group[labels]) & (labels >= 0)
    known = (labels >= 0).sum(axis=0)
    summary: dict[str, Any] = {
        **{f"{name}_accuracy": balanced_accuracy(counts, group) for name, counts in readings.items()},
        **{f"{name}_accuracy_unmerged": balanced_accuracy(counts) for name, counts in readings.items()},
        "chance": 1 / len(np.unique(group[real.sum(axis=1) > 0])),
        "first_frames_accuracy": float(right[:, :4].sum() / max(1, known[:4].sum())),
        "last_frames_accuracy": float(right[:, -4:].sum() / max(1, known[-4:].sum())),
        "lag_correlation": float(lags.max()),
    }  # fmt: skip
    if lag is not None:
        summary["lag_frames"] = lag
    members = [[vocabulary.names[i] for i in np.flatnonzero(group == first)] for first in np.unique(group)]
    merged = "; ".join(" = ".join(names) for names in members if len(names) > 1) or "none"
    notes = [
        "rows of the table: what was done, and the shares of what it was read as; accuracy is the mean over actions; "
        "decoded: true frames of the dreams' walks, encoded and decoded",
        f"taken for each other in the real world and merged: {merged}; "
        "what changes nothing in the real world counts as idling"
        + (", here as nothing to read" if noop is None else ""),
        "lag: 1 is right, the frame after the key"
        if lag is not None
        else "the picture does not follow the keys: no lag",
        f"{streams} streams of {num_frames} frames, seeds from {seed} on; the judge learned from {training.episodes} "
        f"other real episodes and was tested on {training.held_out}",
    ]
    series = {
        "accuracy by frame": numbers(right.sum(axis=0) / np.maximum(known, 1)),
        "correlation of key and change by lag": numbers(lags),
    }
    videos = {"control": side_by_side(walks.frames[0, START_FRAMES:], drawn[0]), "lag": lag_walk}
    by_frame, by_lag = series.values()
    plots = [
        plot("what the judge reads", {"dream": by_frame}, [*range(1, num_frames + 1)], "frame", "accuracy"),
        plot("key and change", {"dream": by_lag}, [*range(LARGEST_LAG + 1)], "lag, frames", "correlation"),
    ]
    table = [row for name, counts in readings.items() for row in _rows(name, vocabulary.names, counts)]
    report = {"name": "control", "summary": rounded(summary), "series": series, "table": table, "notes": notes}
    return ExamResult({**report, "plots": plots}, videos)


def _rows(where: str, names: Sequence[str], counts: np.ndarray) -> list[dict[str, Any]]:
    """A confusion matrix as rows of a table, in shares of each row."""
    return [
        {
            "where": where,
            "action": name,
            "pairs": int(row.sum()),
            **dict(zip(names, numbers(row / max(1, row.sum())), strict=True)),
        }
        for name, row in zip(names, counts, strict=True)
    ]


def _measure_lag(
    predictor: Predictor, env: PixelEnv, streams: int, num_frames: int, seed: int, noise_seed: int, advance: Advance
) -> tuple[np.ndarray, np.ndarray]:
    """The correlations, and a video of the first stream."""
    vocabulary = env.spec.action_vocabulary
    turn = need_action(vocabulary, LEFT, "the lag from key to pixel")
    other = need_action(vocabulary, (*IDLE, *FORWARD), "the lag from key to pixel")
    pressed = np.random.default_rng(seed).random((streams, START_FRAMES - 1 + num_frames)) < 0.5
    actions = np.where(pressed, turn, other)
    walks = take_walks(env, range(seed, seed + streams), actions)
    drawn = dream(predictor, walks.frames[:, :START_FRAMES], actions, seed=noise_seed, advance=advance)
    shown = np.concatenate([walks.frames[:, START_FRAMES - 1 : START_FRAMES], drawn], axis=1)
    correlation = lag_correlation(pressed[:, START_FRAMES - 1 :], shown)
    return correlation, side_by_side(walks.frames[0, START_FRAMES:], drawn[0])
