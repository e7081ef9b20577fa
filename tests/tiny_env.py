"""A tiny world for tests of the recorder, in the shapes that foreign environments come in."""

import os
import subprocess
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

SPACES = {
    "discrete": Discrete(4, start=1),
    "multidiscrete": MultiDiscrete([3, 2]),
    "multibinary": MultiBinary(3),
    "box": Box(-1, 1, (2,)),
    "dict": Dict(forward=Discrete(2), jump=Discrete(2), camera=Box(-180, 180, (2,))),
    "nested": Dict(hand=Dict(use=Discrete(2)), feet=Tuple([Discrete(3), Box(0, 5, (), np.int64)])),
    "text": Text(5),
}


class TinyEnv(gymnasium.Env):
    """A grey frame that remembers the last action, with some noise from the seed.

    Args:
        render_mode: as Gymnasium has it.
        shows: where the pixels are: observation, dict or render.
        shape: height and width of the frames.
        ends_after: steps until it terminates; None for never.
        seconds: what a step takes.
        grows: frames get taller at every step, which no recorder can store.
        chatty: print on stdout, as engines do.
        takes: the kind of its actions, one of SPACES.
        gives: what is wrong with its frames: floats, batch, channels_first, grey, alpha or nothing.
        crash: how it breaks down at step 5: raise, exit or abort; empty never does.
        crash_every: it does so in one of so many episodes, by their seeds; 1 is all.
        crash_file: it does so once, and leaves this file; empty for always.
        child_file: start a process, as engines do, and add its number to this file; empty starts none.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        render_mode=None,
        shows="observation",
        shape=(32, 48),
        ends_after=None,
        seconds=0.0,
        grows=False,
        chatty=False,
        takes="discrete",
        gives="",
        crash="",
        crash_every=1,
        crash_file="",
        child_file="",
    ):
        self.render_mode = render_mode
        self.shows, self.shape, self.ends_after = shows, shape, ends_after
        self.seconds, self.grows, self.chatty = seconds, grows, chatty
        self.gives, self.crash, self.crash_every, self.crash_file = gives, crash, crash_every, crash_file
        self.action_space = SPACES[takes]
        if child_file:
            with open(child_file, "a") as file:
                print(subprocess.Popen(["sleep", "1000"]).pid, file=file)
        picture = Box(0, 255, (*shape, 3), np.uint8)
        spaces = {
            "observation": picture,
            "dict": Dict(map=Box(0, 1, (2,)), screen=picture),
            "render": Box(0, 1, (2,)),
        }
        self.observation_space = spaces[shows]

    def get_action_meanings(self):
        """Names as Atari has them."""
        return ["NOOP", "FIRE", "UPLEFT", "open door"] if self.action_space is SPACES["discrete"] else None

    def _spoil(self, picture):
        spoilt = {
            "floats": lambda: picture.astype(np.float32) / 255,
            "batch": lambda: picture[None],
            "channels_first": lambda: picture.transpose(2, 0, 1),
            "grey": lambda: picture[..., 0],
            "alpha": lambda: np.dstack([picture, picture[..., :1]]),
            "nothing": lambda: None,
        }
        return spoilt[self.gives]() if self.gives else picture

    def _break_down(self):
        """Crash, if now is the time."""
        if self.steps != 5 or not self.crash or self.first % self.crash_every:
            return
        if self.crash_file:
            if os.path.exists(self.crash_file):
                return
            with open(self.crash_file, "w"):
                pass
        if self.crash == "raise":
            raise RuntimeError("the engine broke down")
        if self.crash == "exit":
            os._exit(7)
        os.abort()

    def _see(self):
        height = self.shape[0] + (self.steps if self.grows else 0)
        noise = self.np_random.integers(0, 16, (height, self.shape[1], 3))
        self.picture = self._spoil((noise + 50 * self.last).astype(np.uint8))
        state = np.zeros(2, np.float32)
        return {"observation": self.picture, "dict": {"map": state, "screen": self.picture}, "render": state}[
            self.shows
        ]

    def reset(self, *, seed=None, options=None):
        """Start again, black."""
        super().reset(seed=seed)
        self.steps = self.last = 0
        self.first = int(self.np_random.integers(0, 1000))
        if self.chatty:
            print("a chatty engine")
            os.write(1, b"a chatty library\n")
        return self._see(), {}

    def step(self, action):
        """Show the action; the reward is its number."""
        time.sleep(self.seconds)
        self.steps += 1
        self._break_down()
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = weigh(action)
        self.last = int(action) if isinstance(action, int) else 0
        return self._see(), reward, self.steps == self.ends_after, False, {}

    def render(self):
        """The picture of now."""
        return self.picture


def weigh(action):
    """A number that tells an action from all others."""
    if isinstance(action, dict):
        action = tuple(action[key] for key in sorted(action))
    if isinstance(action, tuple):
        return sum(weigh(part) * 7**place for place, part in enumerate(action))
    return float(sum(value * 3**place for place, value in enumerate(np.ravel(action))))


def make_old_gym(**kwargs):
    """The tiny world with the interface of the old gym, where the seed is given when it is made."""
    return OldTiny(**kwargs)


class OldTiny:
    """Four values a step, no seed at reset."""

    metadata = {"video.frames_per_second": 12}

    def __init__(self, seed=None, takes="discrete"):
        self._env = TinyEnv(takes=takes)
        self._seed = seed
        self.action_space, self.observation_space = self._env.action_space, self._env.observation_space

    def reset(self):
        """The first observation alone."""
        return self._env.reset(seed=self._seed)[0]

    def step(self, action):
        """Cut after ten steps."""
        observation, reward, _, _, info = self._env.step(action)
        return observation, reward, self._env.steps == 10, {**info, "TimeLimit.truncated": True}


_VARIANTS = {
    "Tiny-v0": {},
    "TinySlow-v0": {"seconds": 0.005},
    "TinyChatty-v0": {"chatty": True},
    "TinyDict-v0": {"shows": "dict"},
    "TinyRender-v0": {"shows": "render", "shape": (50, 70)},
    "TinyGrowing-v0": {"grows": True},
    "TinyShort-v0": {"ends_after": 7},
}
for _name, _kwargs in _VARIANTS.items():
    if _name not in gymnasium.registry:
        gymnasium.register(id=_name, entry_point="tiny_env:TinyEnv", kwargs=_kwargs)
