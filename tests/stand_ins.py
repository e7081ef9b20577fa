"""Engines that can't be installed here, as they are documented: spaces, arguments and answers, and no world behind.

Each checks that it is used as its documentation says, so that a test fails where the real one would.
"""

import collections
import enum
import types

import gymnasium
import numpy as np
from gymnasium import spaces

TimeStep = collections.namedtuple("TimeStep", "step_type reward discount observation")
Spec = collections.namedtuple("EnvSpec", "entry_point kwargs max_episode_steps")


def picture(number, height=64, width=64):
    """A frame that shows a number."""
    return np.full((height, width, 3), number % 256, np.uint8)


# DeepMind Lab


class Lab:
    """deepmind_lab.Lab: settings as texts, seven np.intc, and nothing to observe after the end."""

    def __init__(self, level, observations, config=None, renderer="software"):
        assert isinstance(level, str) and observations == ["RGB_INTERLEAVED"] and renderer in ("software", "hardware")
        assert all(isinstance(value, str) for value in config.values()), config
        self._shape = int(config["height"]), int(config["width"])
        self._steps = None

    def reset(self, episode=-1, seed=None):
        """Begin."""
        assert isinstance(episode, int) and isinstance(seed, int) and 0 <= seed < 2**31
        self._steps, self._seed = 0, seed

    def is_running(self):
        """Twelve steps."""
        return self._steps is not None and self._steps < 12

    def observations(self):
        """The picture."""
        if not self.is_running():
            raise RuntimeError("Environment in wrong status for call to observations()")
        return {"RGB_INTERLEAVED": picture(self._seed % 97 + self._steps, *self._shape)}

    def step(self, action, num_steps=1):
        """The reward tells the action; the end has a prize."""
        assert action.dtype == np.intc and action.shape == (7,) and num_steps == 8
        assert (np.abs(action) <= [512, 512, 1, 1, 1, 1, 1]).all() and (action[4:] >= 0).all()
        self._steps += 1
        prize = 0 if self.is_running() else 10_000_000
        return float(action @ [1, 10, 100, 1000, 10_000, 100_000, 1_000_000] + prize)

    def close(self):
        """End."""


# MineRL, in the interface and with the spaces of its own that it has


class MineRLSpace:
    """What minerl.herobraine.hero.spaces have in common."""

    def __init__(self, **facts):
        vars(self).update(facts)


class Discrete(MineRLSpace):
    """A number."""

    def check(self, value):
        """As the real one does."""
        assert isinstance(value, (int, np.integer)) and 0 <= value < self.n, value


class Enum(Discrete):
    """A word, which is a number in Discrete's sense only."""

    def check(self, value):
        """As the real one does."""
        assert isinstance(value, str) and value in self.values, value


class Box(MineRLSpace):
    """Numbers."""

    def check(self, value):
        """As the real one does."""
        assert np.shape(value) == self.shape and (value >= self.low).all() and (value <= self.high).all(), value


class Dict(MineRLSpace):
    """Parts by name."""

    def check(self, value):
        """As the real one does."""
        assert [*value] == [*self.spaces], value
        for key, part in self.spaces.items():
            part.check(value[key])


def minerl_box(low, high, shape, dtype):
    return Box(low=np.full(shape, low, dtype), high=np.full(shape, high, dtype), shape=shape, dtype=np.dtype(dtype))


class MineRLEnv:
    """MineRL 0.4, as MineRLObtainDiamond-v0 makes it; 1.0 is larger and has more keys."""

    metadata = {"render.modes": ["rgb_array", "human"]}

    def __init__(self, height=64, width=64):
        binary = ("attack", "back", "forward", "jump", "left", "right", "sneak", "sprint")
        parts = {key: Discrete(n=2) for key in binary}
        parts["camera"] = minerl_box(-180, 180, (2,), np.float32)
        parts["place"] = Enum(n=3, values=np.array(["dirt", "none", "torch"]), default="none")
        self.action_space = Dict(spaces=collections.OrderedDict(sorted(parts.items())))
        pov = minerl_box(0, 255, (height, width, 3), np.uint8)
        inventory = Dict(spaces={"dirt": minerl_box(0, 2304, (), np.int64)})
        self.observation_space = Dict(spaces={"inventory": inventory, "pov": pov})
        self._size = height, width
        self._seed = 0

    def seed(self, seed=None):
        """Before reset, as MineRL wants it."""
        assert isinstance(seed, int) and 0 <= seed < 2**31
        self._seed = seed

    def reset(self):
        """The observation alone."""
        self._steps = 0
        return self._see()

    def _see(self):
        return {"inventory": {"dirt": np.int64(0)}, "pov": picture(self._seed % 97 + self._steps, *self._size)}

    def step(self, action):
        """Four values."""
        self.action_space.check(action)
        self._steps += 1
        reward = 1000.0 * ["dirt", "none", "torch"].index(action["place"]) + action["forward"] + action["camera"][1]
        return self._see(), float(reward), False, {}

    def render(self, mode="human"):
        """What is seen."""
        assert mode == "rgb_array"
        return self._see()["pov"]

    def close(self):
        """End."""


def old_gym_module():
    """`gym` 0.21 with MineRL's ids."""
    rows = {
        "MineRLObtainDiamond-v0": Spec("stand_ins:MineRLEnv", {}, 20),
        "MineRLBasaltFindCave-v0": Spec("stand_ins:MineRLEnv", {"height": 360, "width": 640}, None),
    }
    registry = types.SimpleNamespace(env_specs=rows)
    return types.SimpleNamespace(envs=types.SimpleNamespace(registry=registry))


# CraftGround


class ActionSpaceVersion(enum.Enum):
    """As in craftground."""

    V1_MINEDOJO = 1
    V2_MINERL_HUMAN = 2


class InitialEnvironmentConfig:
    """As in craftground, which refuses what it does not know."""

    def __init__(self, image_width=640, image_height=360, seed="", hud_hidden=False, render_distance=6):
        self.image_width, self.image_height, self.hud_hidden = image_width, image_height, hud_hidden


def craftground_make(initial_env_config=None, port=8000, action_space_version=ActionSpaceVersion.V1_MINEDOJO):
    assert initial_env_config.hud_hidden
    return CraftGround(initial_env_config, action_space_version)


class CraftGround(gymnasium.Env):
    """Observes more than its picture, among it what is no array."""

    def __init__(self, config, version):
        self._size = config.image_height, config.image_width
        keys = ("attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use", "drop", "inventory")
        buttons = {key: spaces.Discrete(2) for key in (*keys, *(f"hotbar.{i}" for i in range(1, 10)))}
        camera = spaces.Box(np.array([-180, -180]), np.array([180, 180]), dtype=np.float32)
        eight = spaces.MultiDiscrete([3, 3, 4, 25, 25, 8, 244, 36])
        human = spaces.Dict({**buttons, "camera": camera})
        self.action_space = human if version is ActionSpaceVersion.V2_MINERL_HUMAN else eight

    def reset(self, *, seed=None, options=None):
        """The observation twice."""
        super().reset(seed=seed)
        self._steps = 0
        return self._see(), self._see()

    def _see(self):
        return {"full": object(), "pov": picture(self._steps, *self._size)}

    def step(self, action):
        """The reward is how far the camera turned."""
        assert self.action_space.contains(action), action
        self._steps += 1
        turned = action["camera"][1] if isinstance(action, dict) else (action[4] - 12) * 15
        return self._see(), float(turned), False, False, self._see()


# dm_env


class ArraySpec:
    """dm_env.specs.Array."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)


class BoundedArray(ArraySpec):
    """dm_env.specs.BoundedArray."""

    def __init__(self, shape, dtype, minimum, maximum):
        super().__init__(shape, dtype)
        self.minimum, self.maximum = np.asarray(minimum), np.asarray(maximum)


class StepType(TimeStep):
    """dm_env.TimeStep."""

    def last(self):
        """The end."""
        return self.step_type == 2


class Task:
    """A dm_env task that ends after ten steps: without discount, or in time."""

    def __init__(self, seed=None, timeout=False):
        self._random = np.random.RandomState(seed)
        self._timeout = timeout

    def action_spec(self):
        """Two axes."""
        return BoundedArray((2,), np.float64, [-1, -2], [1, 2])

    def observation_spec(self):
        """A picture and a number."""
        return {"pixels": BoundedArray((32, 32, 3), np.uint8, 0, 255), "speed": ArraySpec((), np.float32)}

    def _see(self):
        return {"pixels": self._random.randint(0, 255, (32, 32, 3)).astype(np.uint8), "speed": np.float32(self._steps)}

    def reset(self):
        """Neither reward nor discount."""
        self._steps = 0
        return StepType(0, None, None, self._see())

    def step(self, action):
        """The reward tells the action."""
        assert action.dtype == np.float64 and action.shape == (2,)
        self._steps += 1
        over = self._steps == 10
        discount = 0.0 if over and not self._timeout else 1.0
        return StepType(2 if over else 1, float(action[0] + 10 * action[1]), discount, self._see())
