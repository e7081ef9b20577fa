"""Exam: Memory Maze, the published benchmark of memory, as a test of spatial retrieval.

After "Long-Context State-Space Video World Models" (arXiv:2505.20171), which asks what a model makes of ground that it
has been to. A long true walk goes to and fro between two places. Then it is dreamed on for as long in two ways, each
under the keys of a real walk: once more to and fro, over ground that was seen from the same places in the same
directions, and to the place that is farthest from all that was seen. PSNR over seen ground against that over new ground
is what retrieval gains.

Unlike in the paper, whose trajectories are played in reverse, the maze's own physics makes every frame: seen means that
the context has a frame from within SEEN_CELLS and SEEN_DEGREES.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from farworld.envs.engines.memory_maze import MemoryMazeEnv
from farworld.envs.environments import PixelEnv
from farworld.envs.maze_layout import Cell, distances
from farworld.envs.maze_motion import Pose
from farworld.train.evaluate import ssim
from farworld.train.exams.walks import (
    EXAM_SEED,
    Advance,
    ExamResult,
    Walks,
    best_frames,
    dream,
    frame_psnr,
    nobody,
    numbers,
    rounded,
    side_by_side,
)
from farworld.train.prediction import Predictor

PATROL_CELLS = 3  # from one end of the way to and fro to the other
SEEN_CELLS = 0.35  # distance between two places that count as one
SEEN_DEGREES = 20.0  # and between two directions
ARRIVED = 0.3  # cells from the middle of a cell at which it is reached


def way(walls: np.ndarray, start: Cell, end: Cell) -> list[Cell]:
    """The cells of a shortest way, without the first."""
    reached, cells = distances(walls, start, np.random.default_rng(0)), [end]
    while cells[0] != start:
        cells.insert(0, reached[cells[0]][1])
    return cells[1:]


def steer(pose: Pose, cell: Cell) -> str:
    """The action that goes on towards the middle of a cell."""
    dx, dy = cell[0] + 0.5 - pose.x, cell[1] + 0.5 - pose.y
    error = (math.degrees(math.atan2(dy, dx)) - pose.heading + 180) % 360 - 180
    if abs(error) <= 12:
        return "forward"
    side = "left" if error > 0 else "right"
    return f"forward_{side}" if abs(error) < 40 else f"turn_{side}"


class Patrol:
    """Goes to and fro between the cell where it begins and another one; `leave` sends it to where it has not been."""

    def __init__(self, walls: np.ndarray, start: Cell) -> None:
        reached = distances(walls, start, np.random.default_rng(0))
        far = max(steps for steps, _ in reached.values())
        self._walls = walls
        self._ends = [next(cell for cell, (steps, _) in reached.items() if steps == min(PATROL_CELLS, far)), start]
        self._seen = {start, *way(walls, start, self._ends[0])}
        self._path = way(walls, start, self._ends[0])

    def leave(self, cell: Cell) -> None:
        """Go from a cell to the one that is farthest from all on the way to and fro."""
        reached = distances(self._walls, cell, np.random.default_rng(0))
        away = {c: min(abs(c[0] - s[0]) + abs(c[1] - s[1]) for s in self._seen) for c in reached}
        self._path = way(self._walls, cell, max(away, key=lambda c: away[c]))
        self._ends = [*self._path[-1:], cell]

    def act(self, pose: Pose) -> str:
        """The next action's name."""
        while self._path and math.dist((pose.x, pose.y), (self._path[0][0] + 0.5, self._path[0][1] + 0.5)) < ARRIVED:
            self._path.pop(0)
        if not self._path:
            self._ends.reverse()
            self._path = way(self._walls, pose.cell, self._ends[0]) or [self._ends[0]]
        return steer(pose, self._path[0])


def take_patrol(env: PixelEnv, seed: int, context: int, dreamed: int, *, leaves: bool) -> tuple[np.ndarray, list, list]:
    """A real walk to and fro that goes on, or leaves after `context` frames: frames, actions, and poses of all frames.

    Raises:
        ValueError: the environment ends it.
    """
    maze = env.env.unwrapped
    assert isinstance(maze, MemoryMazeEnv)
    frames, actions = [env.reset(seed)], []
    poses = [maze.pose()]
    patrol = Patrol(maze.walls(), poses[0].cell)
    while len(frames) < context + dreamed:
        if leaves and len(frames) == context:
            patrol.leave(poses[-1].cell)
        actions.append(env.spec.action_vocabulary.index(patrol.act(poses[-1])))
        frame, _, terminated, truncated = env.step(actions[-1])
        if frame is None or terminated or truncated:
            raise ValueError(f"{env.spec.env_id} ended the walk after {len(actions)} steps; ask for a shorter one")
        frames.append(frame)
        poses.append(maze.pose())
    return np.stack(frames), actions, poses


def frames_since_seen(poses: list[Pose], context: int) -> np.ndarray:
    """For each frame behind the context, how long ago the context saw the same from the same place; 0 for never."""
    known = np.array(poses[:context])
    ages = []
    for t, pose in enumerate(poses[context:], context):
        near = np.hypot(known[:, 0] - pose.x, known[:, 1] - pose.y) <= SEEN_CELLS
        turned = np.abs((known[:, 2] - pose.heading + 180) % 360 - 180) <= SEEN_DEGREES
        seen = np.flatnonzero(near & turned)
        ages.append(t - int(seen[-1]) if len(seen) else 0)
    return np.array(ages)


def memory_maze(
    predictor: Predictor,
    env: PixelEnv,
    *,
    streams: int,
    context: int = 120,
    dreamed: int = 30,
    seed: int = EXAM_SEED,
    noise_seed: int = 0,
    advance: Advance = nobody,
) -> ExamResult:
    """Examine spatial retrieval.

    Args:
        predictor: of `streams` streams.
        env: Memory Maze.
        streams: mazes.
        context: true frames; two ways to and fro take about 80.
        dreamed: frames, in each of the two ways.
        seed: of the first maze.
        noise_seed: of the predictor.
        advance: told the number of frames dreamed.

    Raises:
        ValueError: another environment, or too few frames.
    """
    if not isinstance(env.env.unwrapped, MemoryMazeEnv):
        raise ValueError(f"this exam is for the environment memory-maze, got {env.spec.env_id}")
    if context < 2 or dreamed < 1 or streams < 1:
        raise ValueError(f"expected 2 true frames, 1 dreamed and 1 stream or more, got {context}, {dreamed}, {streams}")
    rows: list[dict[str, Any]] = []
    series: dict[str, list[float]] = {}
    videos: dict[str, np.ndarray] = {}
    for ground, leaves in (("seen", False), ("new", True)):
        taken = [take_patrol(env, s, context, dreamed, leaves=leaves) for s in range(seed, seed + streams)]
        frames, actions = (np.stack([walk[part] for walk in taken]) for part in (0, 1))
        ages = np.stack([frames_since_seen(walk[2], context) for walk in taken])
        walks = Walks(frames, actions, tuple(range(seed, seed + streams)))
        known, truth = walks.frames[:, :context], walks.frames[:, context:]
        drawn = dream(predictor, known, walks.actions, seed=noise_seed, advance=advance)
        counted = (ages > 0) != leaves  # the way to and fro has corners that were cut otherwise before
        guesses = {
            "dream": drawn,
            "copy_last": np.broadcast_to(known[:, -1:], truth.shape),
            "best_context_frame": best_frames(known, truth),
        }
        facts: dict[str, Any] = {"ground": ground, "frames": int(counted.sum())}
        if ground == "seen":
            facts["frames_since_seen"] = float(ages[counted].mean()) if counted.any() else 0.0
        for name, guess in guesses.items():
            scores = frame_psnr(guess, truth)
            series[f"{name} {ground}.PSNR"] = numbers(scores.mean(axis=0))
            if counted.any():
                facts[f"{name}_psnr"] = float(scores[counted].mean())
        if counted.any():
            pair = (torch.from_numpy(x[counted]) for x in (drawn, truth))
            facts["dream_ssim"] = float(ssim(*pair).mean())
        rows.append(rounded(facts))
        videos[f"memory maze, {ground} ground"] = side_by_side(truth[0], drawn[0])
    summary = {
        f"{row['ground']}_{name}": value
        for row in rows
        for name, value in row.items()
        if name not in ("ground", "frames")
    }
    if "seen_dream_psnr" in summary and "new_dream_psnr" in summary:
        summary["retrieval_gain_db"] = round(summary["seen_dream_psnr"] - summary["new_dream_psnr"], 4)
    notes = [
        f"{streams} mazes, seeds from {seed} on, {context} true frames, {dreamed} dreamed over seen and as many over "
        f"new ground; seen: the context has a frame from within {SEEN_CELLS} cells and {SEEN_DEGREES:g} degrees; "
        "frames of the other kind are left out of the table",
        "videos: truth, dream",
    ]
    report = {"name": "memory-maze", "summary": summary, "series": series, "table": rows, "notes": notes}
    return ExamResult(report, videos)
