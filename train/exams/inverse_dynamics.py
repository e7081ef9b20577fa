"""A judge that reads the action back from two frames; trained on real frames, once for each environment."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from farworld.dataset import DatasetSpec
from farworld.envs.environments import PixelEnv
from farworld.envs.policies import sticky_random
from farworld.train.exams.walks import IDLE, Advance, Walks, find_action, nobody, take_walks

VERSION = 1  # of what is cached: another one is trained anew
LARGEST = 64  # pixels a side that the judge looks at; larger frames are reduced by area
WIDTHS = (32, 48, 64, 96)  # channels of its stages, each half as large as the one before
TRAIN_SEEDS = 1_000_000  # behind the exams' own seeds
NOTHING = -1  # label of a pair that shows nothing to read: no change, in a world that cannot idle


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeTraining:
    """How a judge is trained.

    Attributes:
        episodes: real ones to train on.
        held_out: real ones to test it on.
        frames: of each.
        steps: of the optimizer.
        batch_size: pairs, every action as often as every other.
        learning_rate: at its highest.
    """

    episodes: int = 200
    held_out: int = 40
    frames: int = 65
    steps: int = 1200
    batch_size: int = 64
    learning_rate: float = 2e-3


class Judge(nn.Module):
    """Logits of the actions from a frame and the one after it."""

    def __init__(self, num_actions: int, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = (-(-side // _reduction(size)) for side in size)
        layers: list[nn.Module] = []
        channels = 9
        for out in WIDTHS:
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            channels, height, width = out, -(-height // 2), -(-width // 2)
        self.features = nn.Sequential(*layers)
        self.logits = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * height * width, num_actions))
        self._size = size

    def forward(self, before: Tensor, after: Tensor, blur: int = 1) -> Tensor:
        """Logits, (N, actions).

        Args:
            before: (N, H, W, 3), uint8.
            after: the same one action later.
            blur: pixels a side that are made one before the judge looks, so that it learns not to rely on detail.
        """
        first, second = (self._reduce(frames, blur) for frames in (before, after))
        return self.logits(self.features(torch.cat([first, second, second - first], dim=1)))

    def _reduce(self, frames: Tensor, blur: int) -> Tensor:
        images = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        images = F.avg_pool2d(images, _reduction(self._size), ceil_mode=True)
        if blur > 1:
            size = images.shape[-2:]
            images = F.interpolate(
                F.avg_pool2d(images, blur, ceil_mode=True), size, mode="bilinear", align_corners=False
            )
        return images


def _reduction(size: tuple[int, int]) -> int:
    return max(1, -(-max(size) // LARGEST))


def random_walks(env: PixelEnv, count: int, num_frames: int, seed: int, advance: Advance = nobody) -> Walks:
    """Real episodes under random actions that are held for a while, from many starts."""
    seeds, rows = range(seed, seed + count), []
    for each in seeds:
        act = sticky_random(len(env.spec.action_vocabulary), np.random.default_rng(each))
        rows.append([act() for _ in range(num_frames - 1)])
    return take_walks(env, seeds, np.array(rows), advance)


def readable_actions(walks: Walks, noop: int | None) -> np.ndarray:
    """What can be read from each pair of frames, (B, T): its action, and idling where nothing changes.

    Who walks into a wall, digs in the air or looks up as far as it goes does what idling does; in a world that cannot
    idle such a pair is NOTHING.
    """
    still = (walks.frames[:, 1:] == walks.frames[:, :-1]).all(axis=(2, 3, 4))
    return np.where(still, NOTHING if noop is None else noop, walks.actions)


@torch.inference_mode()
def read_actions(judge: Judge, frames: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """The action that the judge sees between each frame and the next: (B, T + 1, H, W, 3) to (B, T)."""
    before, after = (torch.from_numpy(x.reshape(-1, *x.shape[2:])) for x in (frames[:, :-1], frames[:, 1:]))
    parts = [judge(a, b).argmax(dim=1) for a, b in zip(before.split(batch_size), after.split(batch_size), strict=True)]
    return torch.cat(parts).numpy().reshape(frames.shape[0], -1)


def confusion(read: np.ndarray, true: np.ndarray, num_actions: int) -> np.ndarray:
    """How often each action, (rows), was read as each (columns); pairs of NOTHING are left out."""
    counts = np.zeros((num_actions, num_actions), np.int64)
    known = true != NOTHING
    np.add.at(counts, (true[known], read[known]), 1)
    return counts


def balanced_accuracy(counts: np.ndarray, group: np.ndarray | None = None) -> float:
    """Mean share of right readings over the actions that occur; within a group (of each action) all are alike."""
    group = np.arange(len(counts)) if group is None else group
    occurs = counts.sum(axis=1) > 0
    right = (counts * (group[:, None] == group[None, :])).sum(axis=1)
    return float((right[occurs] / counts.sum(axis=1)[occurs]).mean())


def train_judge(
    env: PixelEnv, seed: int, training: JudgeTraining, advance: Advance = nobody
) -> tuple[Judge, np.ndarray]:
    """Train a judge; with it, its confusion on held-out real episodes.

    Args:
        env: the real world.
        seed: of the exams; the judge's episodes lie beyond.
        training: how much.
        advance: told the number of steps done.

    Raises:
        ValueError: fewer than two actions can be told apart at all.
    """
    vocabulary = env.spec.action_vocabulary
    noop = find_action(vocabulary, IDLE)
    walks = random_walks(env, training.episodes, training.frames, seed + TRAIN_SEEDS)
    labels = readable_actions(walks, noop).ravel()
    known = np.flatnonzero(labels != NOTHING)
    present, counts = np.unique(labels[known], return_counts=True)
    if len(present) < 2:
        raise ValueError(f"no two actions of {env.spec.env_id} change the picture; there is no control to examine")
    rng = np.random.default_rng(seed)
    weights = (1 / counts)[np.searchsorted(present, labels[known])]
    steps = walks.actions.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(len(vocabulary), (env.spec.height, env.spec.width)).train()
        optimizer = torch.optim.AdamW(judge.parameters(), lr=training.learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, training.learning_rate, total_steps=training.steps, pct_start=0.1
        )
        for _ in range(training.steps):
            chosen = rng.choice(known, training.batch_size, p=weights / weights.sum())
            episode, t = np.divmod(chosen, steps)
            before, after = (torch.from_numpy(walks.frames[episode, t + k]) for k in (0, 1))
            logits = judge(before, after, blur=int(rng.choice((1, 1, 2, 4))))
            loss = F.cross_entropy(logits, torch.from_numpy(labels[chosen]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1)
    judge.eval().requires_grad_(False)
    held_out = random_walks(env, training.held_out, training.frames, seed + 2 * TRAIN_SEEDS)
    return judge, confusion(read_actions(judge, held_out.frames), readable_actions(held_out, noop), len(vocabulary))


# The cache


def cache_file(spec: DatasetSpec, seed: int, training: JudgeTraining) -> Path:
    """Where the judge of an environment is kept in the user's cache."""
    facts = {
        "env": spec.env_id, "kwargs": spec.env_kwargs, "version": spec.env_version, "size": [spec.height, spec.width],
        "actions": spec.action_vocabulary.names, "seed": seed, "judge": VERSION,
        "training": [getattr(training, name) for name in training.__slots__],
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farworld" / f"judge-{key}.safetensors"


def cached_judge(
    env: PixelEnv, seed: int, training: JudgeTraining, path: Path | None = None, advance: Advance = nobody
) -> tuple[Judge, np.ndarray]:
    """As `train_judge`, but from a file if it is there, else into it.

    Args:
        env: the real world.
        seed: see `train_judge`.
        training: see `train_judge`.
        path: the file; None is one in the user's cache, named after all that the judge depends on.
        advance: told the number of steps done.

    Raises:
        ValueError: the file is of another environment, or no judge.
    """
    path = cache_file(env.spec, seed, training) if path is None else path
    names = env.spec.action_vocabulary.names
    if not path.is_file():
        judge, counts = train_judge(env, seed, training, advance)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"actions": json.dumps(names), "confusion": json.dumps(counts.tolist())}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(judge.state_dict(), temporary, about)
        temporary.replace(path)
        return judge, counts
    advance(training.steps)
    judge = Judge(len(names), (env.spec.height, env.spec.width)).eval().requires_grad_(False)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if json.loads(about["actions"]) != list(names):
            raise ValueError(f"it reads the actions {about['actions']}")
        judge.load_state_dict(tensors)
        return judge, np.array(json.loads(about["confusion"]), np.int64)
    except Exception as error:
        raise ValueError(
            f"{path} is no judge of {env.spec.env_id} with the actions {', '.join(names)} ({error}); remove it, or "
            "name another file"
        ) from error
