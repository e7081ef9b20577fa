"""Record episodes of any Gymnasium environment that has discrete actions and pixels."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import itertools
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np

import farworld.envs  # noqa: F401 - registers the built-in worlds, also in a fresh worker process
from farworld.actions import Action, ActionVocabulary
from farworld.dataset import DatasetSpec, Episode, check_episode, create_or_open, write_episode
from farworld.envs.policies import PolicyName, make_policy

BUILT_IN = {"maze": "farworld/Maze-v0", "voxel": "farworld/Voxel-v0"}
DEFAULT_SIZE = 64  # pixels a side, for frames whose own size does not suit the autoencoder
SIZE_MULTIPLE = 16  # what the autoencoder needs height and width to be multiples of
DEFAULT_FRAMES_PER_SECOND = 10.0  # for an environment that does not say

# Ids that begin so need this module, which this extra installs.
_ENGINES = (
    ("ALE/", "ale_py", "atari"),
    ("MiniWorld-", "miniworld", "miniworld"),
    ("Vizdoom", "vizdoom.gymnasium_wrapper", "vizdoom"),
)
_KEYS = "0123456789qwertyuiopasdfghjklzxcvbnm"
_MEANING_KEYS = {"UP": "up", "DOWN": "down", "LEFT": "left", "RIGHT": "right", "FIRE": "space"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What to record; everything an episode depends on except its number.

    Attributes:
        env_id: a Gymnasium id.
        policy: what chooses the actions; `human` is a person, who plays an `EnvPlayer`.
        seed: of the recording; episode i draws its own from (seed, i).
        num_frames: frames of an episode; a terminated environment ends it earlier, and a person whenever.
        size: height and width of the frames in pixels; None takes the environment's where it suits.
    """

    env_id: str
    policy: PolicyName | Literal["human"] = "explore"
    seed: int = 0
    num_frames: int = 300
    size: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise ValueError(f"an episode needs 2 or more frames, got {self.num_frames}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if self.size is not None and (self.size < SIZE_MULTIPLE or self.size % SIZE_MULTIPLE):
            raise ValueError(f"size must be a positive multiple of {SIZE_MULTIPLE}, got {self.size}")

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What the environment is made with: a built-in world draws any size itself."""
        return {"size": self.size} if self.size is not None and self.env_id in BUILT_IN.values() else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingResult:
    """What a recording added, and how fast."""

    episodes: int
    frames: int
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """Frames recorded a second, writing included."""
        return self.frames / self.seconds


# Environments


def resolve_env_id(name: str) -> str:
    """The Gymnasium id for what a person typed.

    Raises:
        ValueError: nothing of this name; the message has the built-in worlds and the nearest match.
        ImportError: the engine it belongs to is not installed; the message has the command.
    """
    env_id = BUILT_IN.get(name, name)
    module, extra = next(((m, e) for prefix, m, e in _ENGINES if env_id.startswith(prefix)), (None, ""))
    try:
        if module is not None:
            importlib.import_module(module)
        elif ":" in env_id:  # Gymnasium's "module:id" form
            importlib.import_module(env_id.split(":", 1)[0])
    except ModuleNotFoundError as error:
        advice = f'; pip install "farworld[{extra}]"' if extra else ""
        raise ImportError(f"environment {name} needs the Python module {error.name}{advice}") from error
    try:
        gymnasium.spec(env_id.rpartition(":")[2])
    except gymnasium.error.Error as error:
        known = [*BUILT_IN, *gymnasium.registry]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"unknown environment {name!r}: the built-in worlds are {', '.join(BUILT_IN)}, "
            f"and any registered Gymnasium id works{hint}"
        ) from error
    return env_id


@contextlib.contextmanager
def plain_errors(env_id: str) -> Iterator[None]:
    """Turn Gymnasium's own errors, which only Gymnasium knows, into the usual kinds."""
    try:
        yield
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"environment {env_id}: {error}") from error
    except gymnasium.error.Error as error:
        raise ValueError(f"environment {env_id}: {error}") from error


def _make(recording: Recording) -> gymnasium.Env:
    """Make the environment so that it renders, or, if it cannot be told to, as it is."""
    make = functools.partial(gymnasium.make, recording.env_id, disable_env_checker=True, **recording.env_kwargs)
    try:
        return make(render_mode="rgb_array")
    except TypeError:  # its __init__ may lack render_mode, which is no harm where observations are pictures
        pass
    try:
        env = make()
    except TypeError as error:
        raise ValueError(f"environment {recording.env_id} cannot be made: {error}") from error
    if _observed_picture(env.observation_space) is None:
        space = env.observation_space
        env.close()
        raise ValueError(
            f"environment {recording.env_id} shows no pixels: its __init__ takes no render_mode and its observations "
            f"are {space}; let it take and heed render_mode='rgb_array', or observe uint8 (height, width, 3)"
        )
    return env


def make_env(recording: Recording) -> gymnasium.Env:
    """Make the environment of a recording.

    Raises:
        ValueError: it cannot be made, shows no pixels, or its actions are not discrete.
        ImportError: it needs a module that is not installed.
    """
    with plain_errors(recording.env_id):
        env = _make(recording)
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        space = env.action_space
        env.close()
        raise ValueError(
            f"environment {recording.env_id} has the action space {space}; "
            "recording needs Discrete: wrap it so that each action is one number"
        )
    return env


def action_vocabulary(env: gymnasium.Env) -> ActionVocabulary:
    """The actions of an environment with names and keys, made up where it does not say."""
    vocabulary = getattr(env.unwrapped, "action_vocabulary", None)
    if vocabulary is not None:
        return vocabulary
    count = int(env.action_space.n)  # type: ignore[attr-defined]
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    names = [str(name) for name in meanings()] if meanings else [f"action_{i}" for i in range(count)]
    chords = itertools.chain.from_iterable(itertools.combinations(_KEYS, size) for size in (1, 2, 3))
    return ActionVocabulary(
        tuple(Action(name=name, keys=_keys_of(name, chord)) for name, chord in zip(names, chords, strict=False))
    )


def _keys_of(name: str, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    if name == "NOOP":
        return ()
    words = "|".join(_MEANING_KEYS)
    if re.fullmatch(f"({words})+", name):
        return tuple(_MEANING_KEYS[word] for word in re.findall(words, name))
    return otherwise


class FrameSource:
    """Frames of one size out of an environment: its observation, a part of it, or what it renders."""

    def __init__(self, env: gymnasium.Env, size: int | None) -> None:
        self._read = _observed_picture(env.observation_space) or (lambda observation: env.render())
        self._size = size
        self._found: tuple[int, ...] | None = None

    def __call__(self, observation: Any) -> np.ndarray:
        """The frame that belongs to an observation: (H, W, 3), uint8.

        Raises:
            ValueError: no such picture, or one of another size than before.
        """
        frame = self._read(observation)
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"expected frames as uint8 (height, width, 3), the environment gave {found}")
        if self._found not in (None, frame.shape):
            raise ValueError(f"frames must keep their size, expected {self._found}, got {frame.shape}")
        self._found = frame.shape
        height, width = frame.shape[:2]
        if self._size is None and height % SIZE_MULTIPLE == 0 and width % SIZE_MULTIPLE == 0:
            return frame
        size = self._size or DEFAULT_SIZE
        if (height, width) == (size, size):
            return frame
        return _area_resize(frame, size)


def _area_resize(frame: np.ndarray, size: int) -> np.ndarray:
    try:
        import cv2
    except (ImportError, OSError) as error:
        raise ImportError(
            f"frames of {frame.shape[0]}x{frame.shape[1]} are resized to {size}x{size} with OpenCV, which cannot be "
            f"loaded ({error}); pip install opencv-python, and if it is there, install the system's libGL "
            "(Debian and Ubuntu: apt install libgl1)"
        ) from error
    return cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)


def _is_picture(space: gymnasium.Space) -> bool:
    return isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)


def _observed_picture(space: gymnasium.Space) -> Callable[[Any], Any] | None:
    """What takes the picture out of an observation; None if there is none in it."""
    if _is_picture(space):
        return lambda observation: observation
    if isinstance(space, gymnasium.spaces.Dict):
        key = next((key for key, part in space.items() if _is_picture(part)), None)
        if key is not None:
            return lambda observation: observation[key]
    return None


class PixelEnv:
    """An environment as it is recorded: frames of one size, actions by their place in the vocabulary."""

    def __init__(self, env: gymnasium.Env, size: int | None) -> None:
        self._env = env
        self._frame_of = FrameSource(env, size)
        self._first_action = int(env.action_space.start)  # type: ignore[attr-defined]

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; its first frame, (H, W, 3), uint8."""
        observation, _ = self._env.reset(seed=seed)
        return self._frame_of(observation).copy()  # environments may draw into the same array again

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        """Take an action; frame, reward, terminated and truncated."""
        observation, reward, terminated, truncated, _ = self._env.step(self._first_action + action)
        return self._frame_of(observation).copy(), float(reward), bool(terminated), bool(truncated)


class EpisodeBuilder:
    """Collects an episode while it is played."""

    def __init__(self, first_frame: np.ndarray, seed: int) -> None:
        self._frames = [first_frame]
        self._actions: list[int] = []
        self._rewards: list[float] = []
        self._terminated = False
        self._seed = seed

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return len(self._frames)

    def add(self, action: int, frame: np.ndarray, reward: float, terminated: bool) -> None:
        """Add an action and what it led to."""
        self._frames.append(frame)
        self._actions.append(action)
        self._rewards.append(reward)
        self._terminated = terminated

    def build(self, index: int, source: str = "") -> Episode:
        """The episode, which ends with the last frame added."""
        return Episode(
            frames=np.stack(self._frames),
            actions=np.array(self._actions, np.int64),
            rewards=np.array(self._rewards, np.float32),
            terminated=self._terminated,
            truncated=not self._terminated,
            seed=self._seed,
            index=index,
            source=source,
        )


# Recording


def episode_seeds(seed: int, index: int) -> tuple[int, int]:
    """What episode `index` of a recording resets its environment with, and what its policy draws from."""
    env_seed, policy_seed = np.random.SeedSequence([seed, index]).generate_state(2)
    return int(env_seed), int(policy_seed)


def record_episode(env: gymnasium.Env, recording: Recording, index: int) -> Episode:
    """Play one episode. It depends on the recording and the number only, not on what was played before."""
    env_seed, policy_seed = episode_seeds(recording.seed, index)
    pixels = PixelEnv(env, recording.size)
    builder = EpisodeBuilder(pixels.reset(env_seed), env_seed)
    vocabulary = action_vocabulary(env)
    policy = make_policy(recording.policy, env, len(vocabulary), np.random.default_rng(policy_seed))
    over = False
    while builder.num_frames < recording.num_frames and not over:
        action = vocabulary.check(policy())
        frame, reward, terminated, truncated = pixels.step(action)
        builder.add(action, frame, reward, terminated)
        over = terminated or truncated
    return builder.build(index)


def spec_of(env: gymnasium.Env, recording: Recording) -> DatasetSpec:
    """Describe the dataset that a recording of this environment makes."""
    observation, _ = env.reset(seed=0)
    height, width = FrameSource(env, recording.size)(observation).shape[:2]
    return DatasetSpec(
        env_id=recording.env_id,
        env_kwargs=recording.env_kwargs,
        policy=recording.policy,
        height=height,
        width=width,
        frames_per_second=float(env.metadata.get("render_fps") or DEFAULT_FRAMES_PER_SECOND),
        action_vocabulary=action_vocabulary(env),
        seed=recording.seed,
    )


def record(
    recording: Recording,
    out: str | os.PathLike,
    *,
    episodes: int,
    workers: int = 1,
    on_episode: Callable[[int], None] = lambda frames: None,
) -> RecordingResult:
    """Add episodes to a dataset, which is made if it is not there.

    Episodes take the smallest free numbers, and their bytes do not depend on `workers`.

    Args:
        recording: what to record.
        out: the dataset's folder.
        episodes: how many to add.
        workers: processes that play.
        on_episode: told the number of frames of each finished episode.

    Raises:
        ValueError: the dataset there holds something else.
        OSError: the disk is full, or a worker was killed; finished episodes are intact.
    """
    if episodes < 1 or workers < 1:
        raise ValueError(f"episodes and workers must be 1 or more, got {episodes} and {workers}")
    begin = time.perf_counter()
    total = 0
    with (
        plain_errors(recording.env_id),
        make_env(recording) as env,
        create_or_open(out, spec_of(env, recording)) as writer,
    ):
        indices = writer.free_indices(episodes)
        lengths: Iterator[int]
        if min(workers, episodes) == 1:
            lengths = (_play(env, recording, writer.spec, writer.directory, index) for index in indices)
        else:
            lengths = _play_parallel(recording, writer.spec, writer.directory, indices, workers)
        for length in lengths:
            total += length
            on_episode(length)
    return RecordingResult(episodes=episodes, frames=total, seconds=time.perf_counter() - begin)


def _play(env: gymnasium.Env, recording: Recording, spec: DatasetSpec, directory: Path, index: int) -> int:
    """Play and write one episode; its number of frames."""
    with plain_errors(recording.env_id):
        episode = record_episode(env, recording, index)
    check_episode(spec, episode)
    write_episode(directory, episode)
    return len(episode.frames)


def _play_parallel(
    recording: Recording, spec: DatasetSpec, directory: Path, indices: Sequence[int], workers: int
) -> Iterator[int]:
    """Play episodes in worker processes; yields the number of frames of each as it is finished."""
    context = multiprocessing.get_context("spawn")  # the same on all systems, and safe beside threads
    pool = ProcessPoolExecutor(min(workers, len(indices)), context, initializer=_start_worker)
    try:
        futures = [pool.submit(_play_in_worker, recording, spec, directory, index) for index in indices]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a recording process was killed, perhaps for want of memory; "
            "finished episodes are intact, try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Make a worker die with Ctrl-C or with its parent, even if that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _env_of_worker(recording: Recording) -> gymnasium.Env:
    """A worker's environment, made once and used for all its episodes."""
    return make_env(recording)


def _play_in_worker(recording: Recording, spec: DatasetSpec, directory: Path, index: int) -> int:
    return _play(_env_of_worker(recording), recording, spec, directory, index)
