"""A tiny world for tests of the recorder, in the shapes that foreign environments come in."""

import os
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


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
        continuous: the action is not discrete.
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
        continuous=False,
    ):
        self.render_mode = render_mode
        self.shows, self.shape, self.ends_after = shows, shape, ends_after
        self.seconds, self.grows, self.chatty = seconds, grows, chatty
        self.action_space = Box(-1, 1, (2,)) if continuous else Discrete(4, start=1)
        picture = Box(0, 255, (*shape, 3), np.uint8)
        spaces = {
            "observation": picture,
            "dict": Dict(map=Box(0, 1, (2,)), screen=picture),
            "render": Box(0, 1, (2,)),
        }
        self.observation_space = spaces[shows]

    def get_action_meanings(self):
        """Names as Atari has them."""
        return ["NOOP", "FIRE", "UPLEFT", "open door"]

    def _see(self):
        height = self.shape[0] + (self.steps if self.grows else 0)
        noise = self.np_random.integers(0, 16, (height, self.shape[1], 3))
        self.picture = (noise + 50 * self.last).astype(np.uint8)
        state = np.zeros(2, np.float32)
        return {"observation": self.picture, "dict": {"map": state, "screen": self.picture}, "render": state}[
            self.shows
        ]

    def reset(self, *, seed=None, options=None):
        """Start again, black."""
        super().reset(seed=seed)
        self.steps = self.last = 0
        if self.chatty:
            print("a chatty engine")
            os.write(1, b"a chatty library\n")
        return self._see(), {}

    def step(self, action):
        """Show the action; the reward is its number."""
        time.sleep(self.seconds)
        self.steps += 1
        self.last = int(action)
        return self._see(), float(action), self.steps == self.ends_after, False, {}

    def render(self):
        """The picture of now."""
        return self.picture


_VARIANTS = {
    "Tiny-v0": {},
    "TinySlow-v0": {"seconds": 0.005},
    "TinyChatty-v0": {"chatty": True},
    "TinyDict-v0": {"shows": "dict"},
    "TinyRender-v0": {"shows": "render", "shape": (50, 70)},
    "TinyGrowing-v0": {"grows": True},
    "TinyShort-v0": {"ends_after": 7},
    "TinyContinuous-v0": {"continuous": True},
}
for _name, _kwargs in _VARIANTS.items():
    if _name not in gymnasium.registry:
        gymnasium.register(id=_name, entry_point="tiny_env:TinyEnv", kwargs=_kwargs)
