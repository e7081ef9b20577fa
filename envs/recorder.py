"""Record episodes of an environment into a dataset, whatever becomes of the environment on the way."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from farworld.dataset import DatasetSpec, Episode, check_episode, create_or_open, episode_name, write_episode
from farworld.envs.environments import EnvironmentCrash, EnvSettings, PixelEnv
from farworld.envs.interrupts import whole_compilations
from farworld.envs.policies import choose_policy, make_policy, parse_policy
from farworld.envs.vocabulary import ActionTable
from farworld.envs.workers import InProcess, Outcome, WorkerPool

MAX_CRASHES = 8  # of the environment in a row, without an episode between them; then recording gives up
MAX_KILLS = 50  # of worker processes, by somebody else, in a row
_TRIES_OF_A_SEED = 2  # an episode in which the environment crashes so often is played from other seeds
# Signals that come from outside; all others are an engine's own doing.
_KILLS = tuple(-getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording(EnvSettings):
    """What to record; everything an episode depends on except its number.

    Attributes:
        policy: what chooses the actions; several as `name=weight` with commas between, of which each episode draws
            one. Empty is the environment's first, see `policies.known_policies`.
        seed: of the recording; episode i draws its own from (seed, i).
        num_frames: frames of an episode; a terminated environment ends it earlier, and a person whenever.
    """

    policy: str = ""
    seed: int = 0
    num_frames: int = 300

    def __post_init__(self) -> None:
        EnvSettings.__post_init__(self)  # super() knows only the class before it had slots
        if self.num_frames < 2:
            raise ValueError(f"an episode needs 2 or more frames, got {self.num_frames}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        parse_policy(self.policy)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingResult:
    """What a recording added, how fast, and what went wrong meanwhile.

    Attributes:
        episodes: added.
        frames: of these.
        seconds: wall time.
        crashes: episodes that were dropped because the environment raised, or took its process with it.
        killed: episodes that were dropped because somebody killed the process that played them.
        spec: of the dataset.
    """

    episodes: int
    frames: int
    seconds: float
    crashes: int
    killed: int
    spec: DatasetSpec

    @property
    def frames_per_second(self) -> float:
        """Frames recorded a second, writing included."""
        return self.frames / self.seconds


class EpisodeSeeds(NamedTuple):
    """What an episode draws from.

    Attributes:
        env: the environment is reset with it.
        policy: of the policy's generator.
        choice: a number in [0, 1) that chooses the policy.
    """

    env: int
    policy: int
    choice: float


def episode_seeds(seed: int, index: int, attempt: int = 0) -> EpisodeSeeds:
    """What episode `index` of a recording draws from; other seeds at another attempt."""
    entropy = [seed, index, attempt] if attempt else [seed, index]
    env, policy, choice = np.random.SeedSequence(entropy).generate_state(3)
    return EpisodeSeeds(int(env), int(policy), float(choice) / 2**32)


class EpisodeBuilder:
    """Collects an episode while it is played."""

    def __init__(self, table: ActionTable, first_frame: np.ndarray, seed: int, policy: str, source: str = "") -> None:
        self._table = table
        self._frames = [first_frame]
        self._actions: list[int] = []
        self._rewards: list[float] = []
        self._terminated = self._truncated = False
        self._seed, self._policy, self._source = seed, policy, source

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return len(self._frames)

    def add(self, action: int, frame: np.ndarray | None, reward: float, terminated: bool, truncated: bool) -> None:
        """Add an action and what it led to.

        An action that led to no frame, as the last one does in some engines, is left out; its reward goes to the one
        before it, so that the episode's return stays, and the episode ends with that one.
        """
        self._terminated, self._truncated = terminated, truncated
        if frame is None:
            if self._rewards:
                self._rewards[-1] += reward
            return
        self._frames.append(frame)
        self._actions.append(action)
        self._rewards.append(reward)

    def build(self, index: int) -> Episode:
        """The episode, which ends with the last frame added."""
        return Episode(
            frames=np.stack(self._frames),
            actions=np.array(self._actions, np.int64),
            rewards=np.array(self._rewards, np.float32),
            terminated=self._terminated,
            truncated=self._truncated or not self._terminated,
            seed=self._seed,
            index=index,
            source=self._source,
            policy=self._policy,
            env_actions=self._table.stack(self._actions),
        )


# Playing


def record_episode(env: PixelEnv, recording: Recording, index: int, attempt: int = 0) -> Episode:
    """Play one episode. It depends on the recording and the numbers only, not on what was played before."""
    seeds = episode_seeds(recording.seed, index, attempt)
    name = choose_policy(env.env, recording.env_id, parse_policy(recording.policy), seeds.choice)
    builder = EpisodeBuilder(env.table, env.reset(seeds.env), seeds.env, name)
    act = make_policy(name, env.env, env.table, np.random.default_rng(seeds.policy))
    over = False
    while builder.num_frames < recording.num_frames and not over:
        action = env.table.vocabulary.check(act())
        frame, reward, terminated, truncated = env.step(action)
        builder.add(action, frame, reward, terminated, truncated)
        over = terminated or truncated or frame is None
    return builder.build(index)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """An episode to be played and written; without a directory the dataset is only described.

    Attributes:
        index: the episode's number.
        attempt: which seeds it is played from.
        is_retry: it was begun before, and may even have been written.
    """

    spec: DatasetSpec | None = None
    directory: Path | None = None
    index: int = 0
    attempt: int = 0
    is_retry: bool = False


class _Session:
    """Plays the episodes of a recording in one process, with one environment as long as that holds."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._env: PixelEnv | None = None
        self._has_worked = False

    def __call__(self, task: _Task) -> DatasetSpec | int:
        """The spec of the dataset, or the number of frames of the episode that was written."""
        try:
            env = self._env = self._env or self._make()
            if task.spec is None or task.directory is None:
                return env.spec
            episode = record_episode(env, self._recording, task.index, task.attempt)
        except EnvironmentCrash:
            self.close()
            raise
        check_episode(task.spec, episode)
        try:
            write_episode(task.directory, episode)
        except FileExistsError:
            if not task.is_retry:  # else it is ours, of a process that was killed before it could say so
                raise
        return len(episode.frames)

    def _make(self) -> PixelEnv:
        recording = self._recording
        try:
            env = PixelEnv(recording, policy=recording.policy, seed=recording.seed)
        except (ValueError, ImportError) as error:
            if self._has_worked:
                raise EnvironmentCrash(str(error)) from error
            raise
        self._has_worked = True
        policy = choose_policy(env.env, recording.env_id, parse_policy(recording.policy), 0.0)
        if not recording.policy:
            env.spec = replace(env.spec, policy=policy)
        return env

    def close(self) -> None:
        """Close the environment; the next task makes a new one."""
        env, self._env = self._env, None
        if env is not None:
            env.close()


@whole_compilations()
def record(
    recording: Recording,
    out: str | os.PathLike,
    *,
    episodes: int,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    on_episode: Callable[[int], None] = lambda frames: None,
) -> RecordingResult:
    """Add episodes to a dataset, which is made if it is not there.

    Episodes take the smallest free numbers, and their bytes do not depend on `workers`. An episode in which the
    environment crashes, or whose process is killed, is dropped and played again: from the same seeds, and if the
    environment crashes with these once more, from others.

    Args:
        recording: what to record.
        out: the dataset's folder.
        episodes: how many to add.
        workers: processes that play; 0 plays in this one, which an engine that dies takes with it.
        shard: (k, n) takes only numbers i with i % n == k, for machines that write into one folder.
        on_episode: told the number of frames of each finished episode.

    Raises:
        ValueError: the environment cannot be recorded so, or the dataset there holds something else.
        ImportError: the environment needs a module that is not installed.
        EnvironmentCrash: the environment crashes again and again.
        OSError: the disk is full; finished episodes are intact.
    """
    if episodes < 1 or workers < 0:
        raise ValueError(f"episodes must be 1 or more and workers 0 or more, got {episodes} and {workers}")
    begin = time.perf_counter()
    start = functools.partial(_Session, recording)
    players = WorkerPool(start, min(workers, episodes)) if workers else InProcess(start)
    tally = _Tally(recording.env_id)
    try:
        spec = _describe(players, tally)
        with create_or_open(out, spec) as writer:
            writer.note(policy=spec.policy, seed=recording.seed)
            tasks = deque(
                _Task(spec=writer.spec, directory=writer.directory, index=index)
                for index in writer.claim(episodes, shard=shard)
            )
            total = 0
            for outcome in players.run(tasks):
                if retry := tally.retry(outcome):
                    tasks.appendleft(retry)
                    continue
                total += outcome.result
                on_episode(outcome.result)
    finally:
        players.close()
    seconds = time.perf_counter() - begin
    return RecordingResult(
        episodes=episodes, frames=total, seconds=seconds, crashes=tally.crashes, killed=tally.killed, spec=spec
    )


def _describe(players: InProcess | WorkerPool, tally: _Tally) -> DatasetSpec:
    """What the dataset will hold, as the first environment that was made says."""
    tasks = deque([_Task()])
    for outcome in players.run(tasks):
        if retry := tally.retry(outcome):
            tasks.append(retry)
        else:
            spec = outcome.result
    tally.crashes = tally.killed = 0  # no episode was lost
    return spec


class _Tally:
    """Counts what went wrong, and decides what is tried again."""

    def __init__(self, env_id: str) -> None:
        self.crashes = self.killed = 0
        self._env_id = env_id
        self._crashes_in_a_row = self._kills_in_a_row = 0
        self._crashes_of: Counter[int] = Counter()

    def retry(self, outcome: Outcome) -> _Task | None:
        """The task again if it came to nothing, else None.

        Raises:
            EnvironmentCrash: too much went wrong without an episode.
            Exception: what the worker raised, if it is not the environment's fault.
        """
        task: _Task = outcome.task
        if outcome.error is None and outcome.exit_code is None:
            self._crashes_in_a_row = self._kills_in_a_row = 0
            return None
        if outcome.error is not None and not isinstance(outcome.error, EnvironmentCrash):
            raise outcome.error
        _remove_traces(task)
        if outcome.exit_code in _KILLS:
            self.killed += 1
            self._kills_in_a_row += 1
            if self._kills_in_a_row >= MAX_KILLS:
                raise EnvironmentCrash(
                    f"recording processes were killed {MAX_KILLS} times without an episode, perhaps for want of "
                    "memory; finished episodes are intact, try fewer --workers"
                )
        else:
            self.crashes += 1
            self._crashes_in_a_row += 1
            self._crashes_of[task.index] += 1
            if self._crashes_in_a_row >= MAX_CRASHES:
                raise EnvironmentCrash(
                    f"gave up after {MAX_CRASHES} crashes in a row without an episode, finished episodes are intact; "
                    f"the last: {self._reason(outcome)}"
                ) from outcome.error
        return replace(task, attempt=self._crashes_of[task.index] // _TRIES_OF_A_SEED, is_retry=True)

    def _reason(self, outcome: Outcome) -> str:
        if outcome.error is not None:
            return str(outcome.error)
        code = outcome.exit_code or 0
        try:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        except ValueError:
            how = f"was ended by signal {-code}"
        return f"the process of environment {self._env_id} {how}"


def _remove_traces(task: _Task) -> None:
    """Remove what a process that died was about to write; nobody else writes this number."""
    if task.directory is not None:
        for path in (task.directory / "episodes").glob(f".{episode_name(task.index)}.tar.*.tmp"):
            path.unlink(missing_ok=True)
