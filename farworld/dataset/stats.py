"""What is in a dataset, in numbers: read once from front to back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from farworld.dataset.reader import Dataset


def summarize(dataset: Dataset) -> dict[str, Any]:
    """What a dataset holds, without decoding a frame: what `farworld data info` prints."""
    spec = dataset.spec
    counts = np.zeros(len(spec.action_vocabulary), np.int64)
    for i in range(len(dataset)):
        counts += np.bincount(dataset.actions(i), minlength=len(counts))
    return {
        "data": dataset.directory,
        "env": spec.env_id,
        "env_version": spec.env_version,
        "episodes": len(dataset),
        "frames": sum(dataset.num_frames(i) for i in range(len(dataset))),
        "height": spec.height,
        "width": spec.width,
        "frames_per_second": spec.frames_per_second,
        "action_timing": spec.action_timing,
        "action_space": spec.action_space,
        "policy": spec.policy,
        "policies": policies(dataset),
        "seed": spec.seed,
        "packed": bool(dataset.shards),
        "shards": len(dataset.shards),
        "bytes": sum(dataset.num_bytes(i) for i in range(len(dataset))),
        "actions": [
            {**row, "count": int(count)} for row, count in zip(spec.action_vocabulary.to_json(), counts, strict=True)
        ],
        "bad": len(dataset.bad),
        "bad_files": [{"path": path, "reason": reason} for path, reason in dataset.bad],
    }


def policies(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Episodes and frames by what chose the actions; the name is empty where nobody said."""
    found: dict[str, dict[str, int]] = {}
    for i in range(len(dataset)):
        row = found.setdefault(dataset.policy(i), {"episodes": 0, "frames": 0})
        row["episodes"] += 1
        row["frames"] += dataset.num_frames(i)
    return dict(sorted(found.items()))


def measure(dataset: Dataset, *, on_episode: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Statistics over all frames, actions and rewards; every frame is decoded.

    Args:
        dataset: one or more episodes.
        on_episode: called after each.

    Returns:
        What summarize gives, and: `lengths` in frames; `pixels`, mean and standard deviation of each colour on the
        0-255 scale; `frame_difference`, the mean absolute difference of a pixel from one frame to the next, over all
        and for each action that lies between; `rewards`, of steps and episodes; `ends`, how episodes ended.

    Raises:
        ValueError: no episode, or a damaged one.
    """
    if not len(dataset):
        raise ValueError(f"{dataset.directory} has no readable episode; record or import some first")
    names = dataset.spec.action_vocabulary.names
    pixel_sums, pixel_squares = np.zeros(3), np.zeros(3)
    change_sums, change_counts = np.zeros(len(names)), np.zeros(len(names), np.int64)
    returns: list[float] = []
    step_rewards: list[np.ndarray] = []
    lengths = np.array([dataset.num_frames(i) for i in range(len(dataset))])
    for i in range(len(dataset)):
        frames, actions, rewards = dataset.frames(i), dataset.actions(i), dataset.rewards(i)
        for channel in range(3):
            histogram = np.bincount(frames[..., channel].ravel(), minlength=256)
            pixel_sums[channel] += histogram @ np.arange(256)
            pixel_squares[channel] += histogram @ np.arange(256) ** 2
        changes = _mean_changes(frames)
        change_sums += np.bincount(actions, changes, len(names))
        change_counts += np.bincount(actions, minlength=len(names))
        returns.append(float(rewards.sum(dtype=np.float64)))
        step_rewards.append(rewards)
        on_episode()
    num_pixels = int(lengths.sum()) * dataset.spec.height * dataset.spec.width
    mean = pixel_sums / num_pixels
    rewards = np.concatenate(step_rewards)
    return {
        **summarize(dataset),
        "lengths": _spread(lengths),
        "pixels": {
            "mean": _rounded(mean),
            "std": _rounded(np.sqrt(np.maximum(0, pixel_squares / num_pixels - mean**2))),
        },
        "frame_difference": {
            "mean": _ratio(change_sums.sum(), change_counts.sum()),
            "by_action": {
                name: _ratio(total, count)
                for name, total, count in zip(names, change_sums.tolist(), change_counts.tolist(), strict=True)
                if count
            },
        },
        "rewards": {
            "steps": _spread(rewards) if len(rewards) else None,
            "nonzero": int(np.count_nonzero(rewards)),
            "episodes": _spread(np.array(returns)),
        },
        "ends": {
            "terminated": sum(dataset.terminated(i) for i in range(len(dataset))),
            "truncated": sum(dataset.truncated(i) for i in range(len(dataset))),
        },
    }


def _mean_changes(frames: np.ndarray) -> np.ndarray:
    """(T,): the mean absolute difference of a pixel between each frame and the next."""
    return np.array(
        [np.abs(np.subtract(b, a, dtype=np.int16)).mean() for a, b in zip(frames, frames[1:], strict=False)], np.float64
    )


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "min": values.min().item(),
        "median": float(np.median(values)),
        "mean": round(float(values.mean(dtype=np.float64)), 6),
        "max": values.max().item(),
        "sum": values.sum(dtype=np.float64 if values.dtype.kind == "f" else np.int64).item(),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]


def _ratio(total: float, count: float) -> float | None:
    return round(float(total / count), 4) if count else None
