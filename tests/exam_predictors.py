"""Predictors that deserve a known score: the truth itself, and ways to be wrong."""

import itertools

import gymnasium
import numpy as np

from farworld.envs.engines.memory_maze import MemoryMazeEnv
from farworld.envs.environments import EnvSettings, PixelEnv
from farworld.envs.maze import MazeEnv
from farworld.envs.maze_motion import Pose
from farworld.train.exams.walks import EXAM_SEED


def maze(**changes):
    return PixelEnv(EnvSettings(env_id="farworld/Maze-v0", env_args={"actions": "walk", "size": 32, **changes}))


def voxel(**changes):
    return PixelEnv(EnvSettings(env_id="farworld/Voxel-v0", env_args={"actions": "basic", "size": 32, **changes}))


class Truth:
    """The real world, found by its first frame and played again."""

    def __init__(self, make_env):
        self.make_env = make_env
        self.finder = make_env()
        self.first_frames = {}
        self.seeds = itertools.count(EXAM_SEED)

    def seed_of(self, frame):
        """The seed whose world begins with a frame."""
        key = frame.tobytes()
        while key not in self.first_frames:
            seed = next(self.seeds)
            assert seed < EXAM_SEED + 2000, "the context begins with no frame of an exam's world"
            self.first_frames[self.finder.reset(seed).tobytes()] = seed
        return self.first_frames[key]

    def prime(self, frames, actions, *, seed=0):
        """Start from a context."""
        assert frames.dtype == np.uint8 and actions.shape == (len(frames), frames.shape[1] - 1)
        self.envs = [self.make_env() for _ in frames]
        for env, episode, row in zip(self.envs, frames, actions, strict=True):
            env.reset(self.seed_of(episode[0]))
            for action, frame in zip(row, episode[1:], strict=True):
                np.testing.assert_array_equal(env.step(int(action))[0], frame)  # the context is true

    def step(self, action):
        """The next frames."""
        return np.stack([env.step(int(a))[0] for env, a in zip(self.envs, action, strict=True)])


class Frozen:
    """Shows the last true frame for ever."""

    def prime(self, frames, actions, *, seed=0):
        """Start from a context."""
        self.frames = frames[:, -1].copy()

    def step(self, action):
        """The next frames."""
        return self.frames


class Noise(Frozen):
    """Shows nothing but noise."""

    def prime(self, frames, actions, *, seed=0):
        """Start from a context."""
        super().prime(frames, actions)
        self.rng = np.random.default_rng(seed)

    def step(self, action):
        """The next frames."""
        return self.rng.integers(0, 256, self.frames.shape, np.uint8)


class Around:
    """Something between an exam and another predictor."""

    def __init__(self, inner):
        self.inner = inner

    def prime(self, frames, actions, *, seed=0):
        """Start from a context."""
        self.rng = np.random.default_rng(seed)
        self.inner.prime(frames, actions, seed=seed)
        self.before = frames[:, -1]
        self.count = 0

    def step(self, action):
        """The next frames."""
        return self.inner.step(action)


class Shuffled(Around):
    """The truth under other keys than were pressed."""

    def __init__(self, inner, num_actions):
        super().__init__(inner)
        self.num_actions = num_actions

    def step(self, action):
        """The next frames."""
        return self.inner.step(self.rng.integers(0, self.num_actions, len(action)))


class Late(Around):
    """Shows every frame one step after it should."""

    def step(self, action):
        """The next frames."""
        shown, self.before = self.before, self.inner.step(action)
        return shown


class Forgetful(Around):
    """The truth, blurred: a memory that has lost all detail."""

    def step(self, action):
        """The next frames."""
        frames = self.inner.step(action).astype(np.float32)
        coarse = frames.reshape(len(frames), 4, 8, 4, 8, 3).mean(axis=(2, 4), keepdims=True)
        return np.broadcast_to(coarse, (len(frames), 4, 8, 4, 8, 3)).reshape(frames.shape).astype(np.uint8)


class Fading(Around):
    """The truth at first, then darker and darker."""

    def __init__(self, inner, good_frames):
        super().__init__(inner)
        self.good_frames = good_frames

    def step(self, action):
        """The next frames."""
        self.count += 1
        light = 0.93 ** max(0, self.count - self.good_frames)
        return (self.inner.step(action) * light).astype(np.uint8)


class Recalling(Truth):
    """Shows the frame of its context that is nearest to the truth: a perfect memory without imagination."""

    def prime(self, frames, actions, *, seed=0):
        """Start from a context."""
        super().prime(frames, actions)
        self.context = frames

    def step(self, action):
        """The next frames."""
        truth = super().step(action)
        error = np.abs(self.context.astype(np.int16) - truth[:, None]).mean(axis=(2, 3, 4))
        return self.context[np.arange(len(truth)), error.argmin(axis=1)]


class StandInMemoryMaze(MemoryMazeEnv):
    """What the exam sees of Memory Maze, in the built-in maze, whose left is the other's right."""

    ACTIONS = ("noop", "forward", "turn_right", "turn_left", "forward_right", "forward_left")

    def __init__(self, render_mode=None):
        self.maze = MazeEnv(actions="walk", size=32)
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 4.0}
        self.observation_space = self.maze.observation_space
        self.action_space = gymnasium.spaces.Discrete(len(self.ACTIONS))

    def reset(self, *, seed=None, options=None):
        """Begin."""
        return self.maze.reset(seed=seed)

    def step(self, action):
        """Turn, and walk."""
        return self.maze.step(self.maze.action_vocabulary.index(self.ACTIONS[action]))

    def pose(self):
        """Where the camera is."""
        return Pose(*self.maze.pose)

    def walls(self):
        """Which cells are walls."""
        return self.maze.walls


def memory_maze_stand_in():
    return PixelEnv(EnvSettings(env_id="exam_predictors:StandInMemoryMaze"))
