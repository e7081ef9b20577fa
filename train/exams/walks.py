"""What all exams share: real walks to prime with, dreams under the same keys, and what an exam hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from farworld.actions import ActionVocabulary
from farworld.envs.environments import EnvSettings, PixelEnv
from farworld.train.evaluate import psnr
from farworld.train.prediction import Predictor
from farworld.world_model import WorldConfig, WorldModel

EXAM_SEED = 10_000_000  # environments of exams begin from this seed on; recordings draw theirs from all 32 bits
START_FRAMES = 8  # true ones before a dream that goes on from anywhere
SAME_PSNR = 40.0  # dB, from which on two true frames are taken for the same view
TRIES_PER_WALK = 60  # seeds that are tried for each walk that is wanted
LEFT, RIGHT = ("turn_left", "yaw_left", "left"), ("turn_right", "yaw_right", "right")
FORWARD, BACKWARD, IDLE = ("forward",), ("backward", "back"), ("noop",)

Advance = Callable[[int], None]
RoundTrip = Callable[[Tensor], Tensor]  # frames (N, H, W, 3), uint8, to themselves encoded and decoded


def nobody(count: int) -> None:
    """An `advance` that nobody looks at."""


class ExamResult(NamedTuple):
    """What an exam hands back.

    Attributes:
        report: JSON-ready: name, summary {metric: number}, series {name: [numbers]}, table [{column: value}],
            notes [str], and plots, if the series need axes of their own: lines {name: [[x, y]]}, title, x_label,
            y_label.
        videos: name to frames (F, H, W, 3), uint8, truth at the left and dreams beside it.
    """

    report: dict[str, Any]
    videos: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Walks:
    """True episodes of one length.

    Attributes:
        frames: (B, T + 1, H, W, 3), uint8.
        actions: (B, T), int64; action t produced frame t + 1.
        seeds: B seeds that the environment was reset with.
    """

    frames: np.ndarray
    actions: np.ndarray
    seeds: tuple[int, ...]


# The environment


def exam_settings(
    config: WorldConfig, env_id: str | None = None, settings: Mapping[str, Any] | None = None
) -> EnvSettings:
    """The environment that a world was trained in, as its provenance says, or another one.

    Args:
        config: of the world.
        env_id: another environment, resolved; None is the world's own.
        settings: arguments of EnvSettings; `env_args` are added to the recorded ones.

    Raises:
        ValueError: the world does not say where it was trained.
    """
    given = dict(settings or {})
    args = dict(given.pop("env_args", {}))
    if env_id is None:
        data = config.training.get("data", {})
        if not data.get("env"):
            raise ValueError(
                f"the world {config.name} does not say which environment it was trained in; name one with --env"
            )
        env_id, args = data["env"], {**data.get("env_kwargs", {}), **args}
    if config.frame_height == config.frame_width:
        given.setdefault("size", config.frame_height)
    return EnvSettings(env_id=env_id, env_args=args, **given)


def check_world_fits(config: WorldConfig, env: PixelEnv) -> None:
    """Raise ValueError unless world and environment have the same actions, frame size and pace."""
    spec = env.spec
    mine = (config.vocabulary.names, (config.frame_height, config.frame_width), config.frames_per_second)
    theirs = (spec.action_vocabulary.names, (spec.height, spec.width), spec.frames_per_second)
    for what, a, b in zip(("actions", "frame size", "frames per second"), mine, theirs, strict=True):
        if a != b:
            raise ValueError(
                f"the world {config.name} and the environment {spec.env_id} differ in {what}: {_text(a)} against "
                f"{_text(b)}; name the one that it was trained in with --env and --env-arg, such as actions=walk"
            )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def find_action(vocabulary: ActionVocabulary, names: Sequence[str]) -> int | None:
    """The first of some actions that a vocabulary has."""
    return next((vocabulary.index(name) for name in names if name in vocabulary.names), None)


def need_action(vocabulary: ActionVocabulary, names: Sequence[str], why: str) -> int:
    """As `find_action`, or ValueError saying what wants it."""
    action = find_action(vocabulary, names)
    if action is None:
        raise ValueError(f"{why} needs an action {' or '.join(names)}; this world has {', '.join(vocabulary.names)}")
    return action


def turns_of_a_circle(env: PixelEnv) -> int:
    """How many turns on the spot make a full circle.

    Raises:
        ValueError: no whole number does, or the environment does not say how far it turns.
    """
    world = env.env.unwrapped
    turns = getattr(world, "headings", None)
    if turns is None and hasattr(world, "turn_degrees"):
        turns = 360 / world.turn_degrees
    if turns is None or turns != round(turns):
        raise ValueError(
            f"{env.spec.env_id} has no number of turns that make a full circle"
            + ("" if turns is None else f" (it takes {turns:g})")
            + "; this exam is for the built-in worlds, in steps that divide 360 degrees"
        )
    return round(turns)


# True walks


def take_walk(env: PixelEnv, seed: int, actions: Sequence[int]) -> np.ndarray:
    """The frames of an episode, (T + 1, H, W, 3), uint8.

    Raises:
        ValueError: the environment ends it.
    """
    frames = [env.reset(seed)]
    for step, action in enumerate(actions, 1):
        frame, _, terminated, truncated = env.step(int(action))
        if frame is None or ((terminated or truncated) and step < len(actions)):
            raise ValueError(
                f"{env.spec.env_id} ended the episode of seed {seed} after {step} of {len(actions)} steps; "
                "exams need environments that go on"
            )
        frames.append(frame)
    return np.stack(frames)


def take_walks(env: PixelEnv, seeds: Sequence[int], actions: np.ndarray, advance: Advance = nobody) -> Walks:
    """Walks of these seeds; actions (B, T)."""
    frames = []
    for seed, row in zip(seeds, actions, strict=True):
        frames.append(take_walk(env, seed, row))
        advance(actions.shape[1])
    return Walks(np.stack(frames), np.asarray(actions, np.int64), tuple(seeds))


def find_walks(
    env: PixelEnv, plan: Sequence[int], count: int, first_seed: int, suits: Callable[[np.ndarray], bool], what: str
) -> Walks:
    """The first `count` seeds under which a plan makes a walk that suits.

    Args:
        env: where to walk.
        plan: the actions.
        count: walks that are wanted.
        first_seed: where the search begins.
        suits: judges the frames of a walk.
        what: it is, for the message.

    Raises:
        ValueError: there are too few among the seeds that are tried.
    """
    seeds, frames, tries = [], [], TRIES_PER_WALK * count
    for seed in range(first_seed, first_seed + tries):
        walk = take_walk(env, seed, plan)
        if suits(walk):
            seeds.append(seed)
            frames.append(walk)
            if len(seeds) == count:
                return Walks(np.stack(frames), np.tile(np.asarray(plan, np.int64), (count, 1)), tuple(seeds))
    raise ValueError(f"of {tries} starts in {env.spec.env_id}, {len(seeds)} have {what}; {count} are wanted")


def is_same_view(frames: np.ndarray, others: np.ndarray) -> bool:
    """Whether frames (N, H, W, 3), uint8, show what others do, one by one."""
    return bool((frame_psnr(frames, others) >= SAME_PSNR).all())


# Dreams


def dream(
    predictor: Predictor, frames: np.ndarray, actions: np.ndarray, *, seed: int = 0, advance: Advance = nobody
) -> np.ndarray:
    """What comes after some true frames, under given actions.

    Args:
        predictor: of B streams.
        frames: (B, F, H, W, 3), uint8, the true context.
        actions: (B, F − 1 + K); the first F − 1 lie between the true frames, the others are dreamed.
        seed: of the noise.
        advance: told the number of frames done.

    Returns:
        (B, K, H, W, 3), uint8.
    """
    num_true = frames.shape[1] - 1
    predictor.prime(frames, actions[:, :num_true], seed=seed)
    drawn = []
    for t in range(num_true, actions.shape[1]):
        drawn.append(predictor.step(actions[:, t]).copy())
        advance(len(frames))
    return np.stack(drawn, axis=1)


def round_trip_of(world: WorldModel) -> RoundTrip:
    """A world's autoencoder, there and back."""
    return lambda frames: world.decode(world.encode(frames[:, None])[:, 0]).cpu()


def frame_psnr(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """PSNR in dB of frames (…, H, W, 3), uint8, without the last three axes."""
    shape = predicted.shape[:-3]
    flat = [torch.from_numpy(np.ascontiguousarray(x)).flatten(0, len(shape) - 1) for x in (predicted, truth)]
    return psnr(*flat).numpy().reshape(shape)


def best_frames(context: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each true frame the nearest one of its stream's context; (B, F, …) and (B, K, …), the latter's shape."""
    found = np.empty_like(truth)
    for stream, (known, wanted) in enumerate(zip(context, truth, strict=True)):
        a, b = (torch.from_numpy(x.reshape(len(x), -1)).double() for x in (wanted, known))
        found[stream] = known[torch.cdist(a, b).argmin(dim=1).numpy()]
    return found


def side_by_side(*videos: np.ndarray, gap: int = 2) -> np.ndarray:
    """Videos (F, H, W, 3) beside each other, white between them, as wide as H.264 needs it."""
    height, width = videos[0].shape[1:3]
    columns = len(videos) * (width + gap) - gap
    canvas = np.full((len(videos[0]), height, columns + columns % 2, 3), 255, np.uint8)
    for place, video in enumerate(videos):
        left = place * (width + gap)
        canvas[:, :, left : left + width] = video
    return canvas


def plot(title: str, lines: Mapping[str, Sequence[float]], x: Sequence[float], x_label: str, y_label: str) -> dict:
    """A plot of a report: several lines over the same x."""
    points = {name: [list(point) for point in zip(x, y, strict=True)] for name, y in lines.items()}
    return {"lines": points, "title": title, "x_label": x_label, "y_label": y_label}


def numbers(values: np.ndarray | Sequence[float]) -> list[float]:
    """A JSON-ready series, to four digits behind the point."""
    return [round(float(value), 4) for value in np.asarray(values)]


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-ready facts; floats to four digits behind the point."""
    return {
        name: round(float(value), 4) if isinstance(value, float | np.floating) else value
        for name, value in values.items()
    }
