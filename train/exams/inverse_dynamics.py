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
from farworld.train.exams.walks import IDLE, Advance, find_action, nobody, take_walk

VERSION = 1  # of what is cached: another one is trained anew
LARGEST = 64  # pixels a side that the judge looks at
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
    """Logits of the actions from a frame and the one after it, both as `reduced` makes them."""

    def __init__(self, num_actions: int, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = size
        layers: list[nn.Module] = []
        channels = 9
        for out in WIDTHS:
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            channels, height, width = out, -(-height // 2), -(-width // 2)
        self.features = nn.Sequential(*layers)
        self.logits = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels * height * width, num_actions))

    def forward(self, before: Tensor, after: Tensor, blur: int = 1) -> Tensor:
        """Logits, (N, actions).

        Args:
            before: (N, h, w, 3), uint8.
            after: the same one action later.
            blur: pixels a side that are made one before the judge looks, so that it learns not to rely on detail.
        """
        first, second = (frames.permute(0, 3, 1, 2).float() / 127.5 - 1 for frames in (before, after))
        if blur > 1:
            first, second = (_blurred(images, blur) for images in (first, second))
        return self.logits(self.features(torch.cat([first, second, second - first], dim=1)))


def _blurred(images: Tensor, pixels: int) -> Tensor:
    coarse = F.avg_pool2d(images, pixels, ceil_mode=True)
    return F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)


def reduced(frames: np.ndarray) -> np.ndarray:
    """Frames (N, H, W, 3), uint8, with no side above LARGEST pixels: areas of a whole number of pixels become one."""
    factor = -(-max(frames.shape[1:3]) // LARGEST)
    if factor <= 1:
        return frames
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    pooled = F.avg_pool2d(images, factor, ceil_mode=True)
    return pooled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def random_actions(env: PixelEnv, seed: int, num_actions: int) -> np.ndarray:
    """Random actions that are held for a while, (num_actions,), int64."""
    act = sticky_random(len(env.spec.action_vocabulary), np.random.default_rng(seed))
    return np.array([act() for _ in range(num_actions)], np.int64)


def real_pairs(env: PixelEnv, seed: int, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames (T + 1, h, w, 3) of a real episode under random actions, reduced, and what can be read, (T,)."""
    actions = random_actions(env, seed, num_frames - 1)
    frames = take_walk(env, seed, actions)
    return reduced(frames), readable_actions(frames, actions, find_action(env.spec.action_vocabulary, IDLE))


def readable_actions(frames: np.ndarray, actions: np.ndarray, noop: int | None) -> np.ndarray:
    """What can be read from each pair of frames, (T,): its action, and idling where nothing changes.

    Who walks into a wall, digs in the air or looks up as far as it goes does what idling does; in a world that cannot
    idle such a pair is NOTHING.
    """
    still = (frames[1:] == frames[:-1]).all(axis=(1, 2, 3))
    return np.where(still, NOTHING if noop is None else noop, actions)


@torch.inference_mode()
def read_actions(judge: Judge, frames: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """The action that the judge sees between each frame and the next, (T,); frames (T + 1, H, W, 3), uint8."""
    seen = torch.from_numpy(reduced(frames))
    pairs = zip(seen[:-1].split(batch_size), seen[1:].split(batch_size), strict=True)
    return torch.cat([judge(before, after).argmax(dim=1) for before, after in pairs]).numpy()


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
    first = seed + TRAIN_SEEDS
    episodes = [real_pairs(env, each, training.frames) for each in range(first, first + training.episodes)]
    frames, labels = np.stack([pair[0] for pair in episodes]), np.concatenate([pair[1] for pair in episodes])
    known = np.flatnonzero(labels != NOTHING)
    present, counts = np.unique(labels[known], return_counts=True)
    if len(present) < 2:
        raise ValueError(f"no two actions of {env.spec.env_id} change the picture; there is no control to examine")
    rng = np.random.default_rng(seed)
    weights = (1 / counts)[np.searchsorted(present, labels[known])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(len(vocabulary), frames.shape[2:4]).train()
        optimizer = torch.optim.AdamW(judge.parameters(), lr=training.learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, training.learning_rate, total_steps=training.steps, pct_start=0.1
        )
        for _ in range(training.steps):
            chosen = rng.choice(known, training.batch_size, p=weights / weights.sum())
            episode, t = np.divmod(chosen, training.frames - 1)
            before, after = (torch.from_numpy(frames[episode, t + k]) for k in (0, 1))
            logits = judge(before, after, blur=int(rng.choice((1, 1, 2, 4))))
            loss = F.cross_entropy(logits, torch.from_numpy(labels[chosen]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1)
    judge.eval().requires_grad_(False)
    return judge, real_confusion(judge, env, seed + 2 * TRAIN_SEEDS, training)


def real_confusion(judge: Judge, env: PixelEnv, first_seed: int, training: JudgeTraining) -> np.ndarray:
    """What the judge makes of held-out real episodes."""
    counts = np.zeros((len(env.spec.action_vocabulary),) * 2, np.int64)
    for seed in range(first_seed, first_seed + training.held_out):
        frames, labels = real_pairs(env, seed, training.frames)
        counts += confusion(read_actions(judge, frames), labels, len(counts))
    return counts


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
    size = reduced(np.zeros((1, env.spec.height, env.spec.width, 3), np.uint8)).shape[1:3]
    judge = Judge(len(names), size).eval().requires_grad_(False)
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
