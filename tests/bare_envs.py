"""Environments as many write their first, and such that cannot be recorded; not registered, but called by name."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple

PICTURE = Box(0, 255, (32, 32, 3), np.uint8)


class PlainEnv(gymnasium.Env):
    """As many write their first environment: without render_mode, or even without __init__."""

    action_space = Discrete(2)
    observation_space = PICTURE

    def reset(self, *, seed=None, options=None):
        """A noisy frame."""
        super().reset(seed=seed)
        return self.observation_space.low + self.np_random.integers(0, 255, (32, 32, 3), np.uint8), {}

    def step(self, action):
        """Another noisy frame."""
        return self.np_random.integers(0, 255, (32, 32, 3), np.uint8), 0.0, False, False, {}


class NoRenderModeEnv(PlainEnv):
    """Its __init__ takes nothing."""

    def __init__(self):
        self.ready = True


class BlindEnv(NoRenderModeEnv):
    """No picture anywhere."""

    observation_space = Box(0, 1, (2,))


class DemandingEnv(PlainEnv):
    """Cannot be made from the command line."""

    def __init__(self, level, render_mode=None):
        self.level = level


class UnlicensedEnv(PlainEnv):
    """Fails as Gymnasium's environments do."""

    def __init__(self, render_mode=None):
        raise gymnasium.error.Error("no licence for this engine")


class LateEnv(PlainEnv):
    """Misses its renderer only when it draws, as the classic control environments do."""

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def step(self, action):
        """Never gets there."""
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


class NoEnv:
    """Nothing that could be played."""


class ShowEnv(NoRenderModeEnv):
    """Shows the same always."""

    def see(self):
        """The observation."""
        raise NotImplementedError

    def reset(self, *, seed=None, options=None):
        """The observation."""
        return self.see(), {}

    def step(self, action):
        """The observation."""
        return self.see(), 0.0, False, False, {}


class TwoFacedEnv(ShowEnv):
    """Observes one picture and renders another."""

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def see(self):
        """The one."""
        return np.full((32, 32, 3), 10, np.uint8)

    def render(self):
        """The other."""
        return np.full((32, 32, 3), 20, np.uint8)


class AtlasEnv(ShowEnv):
    """Several pictures, the screen among them and not the first."""

    observation_space = Dict(automap=PICTURE, deep=Dict(maps=Tuple([PICTURE, PICTURE])), screen=PICTURE)

    def see(self):
        """A number for each."""
        pictures = [np.full((32, 32, 3), number, np.uint8) for number in (6, 8, 9, 7)]
        return {"automap": pictures[0], "deep": {"maps": tuple(pictures[1:3])}, "screen": pictures[3]}


class WideEnv(ShowEnv):
    """A red square between green bands."""

    observation_space = Box(0, 255, (48, 96, 3), np.uint8)

    def see(self):
        """The picture."""
        picture = np.zeros((48, 96, 3), np.uint8)
        picture[:, :, 1] = 255
        picture[:, 24:72] = [255, 0, 0]
        return picture
