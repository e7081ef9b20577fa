"""farworld/Voxel-v0: a small Minecraft-style world."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from farworld.envs.voxel_actions import CONTROLS, Motion
from farworld.envs.voxel_blocks import BEDROCK, FIRST_PLANT, HOT_BAR
from farworld.envs.voxel_body import Body, aim, find_start
from farworld.envs.voxel_classic import generate_classic
from farworld.envs.voxel_hand import draw_hand
from farworld.envs.voxel_policies import POLICIES, make_policy
from farworld.envs.voxel_render import FIRST_LOOK, LOOK, Look, render
from farworld.envs.voxel_sky import TIMES, Daylight, daylight_at, frozen_day
from farworld.envs.voxel_terrain import generate_swamp, generate_varied
from farworld.envs.voxel_world import World

MIN_DAY_FRAMES = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class _Land:
    """A kind of world: how it is made and how it looks."""

    generate: Callable[[np.random.Generator], World]
    look: Look


_LANDS = {
    "varied": _Land(generate=generate_varied, look=LOOK),
    "swamp": _Land(generate=generate_swamp, look=LOOK),
    "classic": _Land(generate=generate_classic, look=FIRST_LOOK),
}
_PRESETS = {"default": ("full", "varied"), "minecraft": ("teco", "swamp")}  # actions and world


class VoxelEnv(gymnasium.Env[np.ndarray, int]):
    """Walk, swim, dig and build in a procedural block world.

    ## Description
    A new world for every seed: 256 x 256 columns of blocks, 64 high, with plains, forests, taiga, tundra, deserts,
    savannas, swamps and mountains, seven kinds of trees, rivers, lakes and caves that open in hillsides. The world
    has no edge: whoever walks 256 blocks straight ahead is back. What is dug stays dug and what is placed stays;
    water runs into holes, sand and gravel fall, lamps shine in the dark.

    ## Action space
    `Discrete`; names and keys are those of `action_vocabulary`, the argument `actions` chooses one of three.

    `actions="full"`, `Discrete(21)`, 10 steps a second:

    | index | name | keys | effect |
    |---|---|---|---|
    | 0 | noop | | nothing |
    | 1, 2 | forward, backward | w, s | walk 0.43 blocks; steps one block up are taken, walls are slid along |
    | 3, 4 | strafe_left, strafe_right | a, d | walk sideways |
    | 5, 6 | turn_left, turn_right | left, right | turn by 15 degrees |
    | 7, 8 | forward_left, forward_right | w + left, w + right | turn, then walk ahead |
    | 9 | sprint | w + left shift | run 0.56 blocks ahead |
    | 10, 11 | sprint_left, sprint_right | w + left shift + left, right | turn, then run ahead |
    | 12, 13 | look_up, look_down | up, down | tilt by 15 degrees, at most 75 from level |
    | 14 | jump | space | leave the ground; a jump lands one block higher |
    | 15, 16 | forward_jump, sprint_jump | w + space, w + left shift + space | jump, and walk or run ahead |
    | 17 | dig | e | remove the block in the middle of the picture, if within 4 blocks |
    | 18 | place | f | put the block in the hand on the face in the middle of the picture, if within 4 blocks |
    | 19, 20 | previous_block, next_block | z, x | take another block into the hand |

    The hand goes through planks, cobblestone, bricks, a log, dirt, sand, glass and a lamp. Swimmers float; who walks
    ahead in water while looking down dives.

    `actions="basic"`, `Discrete(12)`, 10 steps a second: noop, forward (up), backward (down), turn_left (left),
    turn_right (right), forward_left (up + left), forward_right (up + right), look_up (w), look_down (s), jump
    (space: up and ahead; the flight goes on through the next steps), dig (d) and place (a: planks). Strides are
    0.35 blocks, and the view tilts by at most 45 degrees.

    `actions="teco"`, `Discrete(3)`, 20 steps a second: forward (up), yaw_left (left) and yaw_right (right), which
    turn by 20 degrees. Jump is held all the time, and speeds are Minecraft's.

    ## Observation space
    `Box(0, 255, (size, size, 3), uint8)`: the view from the eyes, 70 degrees wide. With `actions="full"` the block in
    the hand is in the lower right corner.

    ## Rewards
    Always 0: there is no goal.

    ## Starting state
    On dry ground under the open sky at a random place, heading anywhere, looking level, planks in the hand. `info`
    has `position` (x, y, z of the feet in blocks), `heading` and `pitch` in degrees, `biome` by its name, `time` in
    days since a sunrise (None where it stands still) and `slot`, the place of the hand in the hot bar.

    ## Episode end
    Never terminates, and truncates only under a time limit wrapper.

    ## Arguments
    - `size`: height and width of the observation in pixels, a multiple of 16, default 128.
    - `render_mode`: `None` or `"rgb_array"`; `render()` returns the observation.
    - `preset`: `"default"` is `actions="full"` in the world described above. `"minecraft"` is what the TECO data set
      (arXiv:2210.02396) was recorded with: `actions="teco"` in a swamp at sea level of 128 x 128 columns.
    - `actions`: `"full"`, `"basic"` or `"teco"`; None takes the preset's.
    - `world`: `"varied"`, `"swamp"` or `"classic"`, which is the world of version 0.1: smaller, with four biomes,
      shown as it was shown then. None takes the preset's, but `"classic"` for `actions="basic"`, so that what was
      trained on 0.1 can be compared frame by frame.
    - `day_cycle`: `"off"` is broad day; a whole number is the frames of a day, at least 24, which begins at a random
      time; `"dawn"`, `"noon"`, `"dusk"`, `"night"` or a float in [0, 1), the share of a day since sunrise, lets the
      time stand still.

    ## Version history
    - v0: first release. Since farworld 0.2 `actions="basic"` is what had been all there was.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}
    POLICIES: tuple[str, ...] = POLICIES

    def __init__(
        self,
        size: int = 128,
        render_mode: str | None = None,
        *,
        preset: str = "default",
        actions: str | None = None,
        world: str | None = None,
        day_cycle: str | int | float = "off",
    ) -> None:
        if size < 16 or size % 16:
            raise ValueError(f"size must be a positive multiple of 16 pixels, got {size}; 128 is the default")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        _check_choice("preset", preset, _PRESETS)
        preset_actions, preset_world = _PRESETS[preset]
        actions = preset_actions if actions is None else actions
        if world is None:
            world = "classic" if actions == "basic" else preset_world
        _check_choice("actions", actions, CONTROLS)
        _check_choice("world", world, _LANDS)
        self.size = size
        self.render_mode = render_mode
        self.day_frames, self._fixed_time = _read_day_cycle(day_cycle)
        self._control, self._land = CONTROLS[actions], _LANDS[world]
        self.action_vocabulary = self._control.vocabulary
        self.metadata = {**self.metadata, "render_fps": self._control.frames_per_second}
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(len(self.action_vocabulary))
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._world: World | None = None

    @property
    def world(self) -> World:
        """The blocks of now; ValueError before the first reset."""
        if self._world is None:
            raise ValueError("there is no world before the first reset(); call reset() first")
        return self._world

    @property
    def headings(self) -> int:
        """Directions to face, one turn apart."""
        return self._control.headings

    @property
    def motion(self) -> Motion:
        """How the body moves."""
        return self._control.motion

    @property
    def angle(self) -> float:
        """Where the body faces, in radians; 0 is along +z and turning right grows it."""
        return self.heading * math.tau / self._control.headings

    @property
    def time(self) -> float | None:
        """Days since a sunrise; None where it is always day."""
        if self.day_frames is None:
            return self._fixed_time
        return (self._dawn + self._num_steps / self.day_frames) % 1.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Make a new world and stand somewhere in it."""
        super().reset(seed=seed)
        self._world = self._land.generate(self.np_random)
        x, y, z = find_start(self.world, self.np_random)
        self.body = Body(self.world, self._control.motion, x + 0.5, float(y), z + 0.5)
        self.heading = int(self.np_random.integers(self._control.headings))  # in turns
        self.tilt = 0  # of the view, upwards, in tilts
        self.slot = 0  # of the hot bar
        self._swings = False
        self._num_steps = 0
        self._dawn = float(self.np_random.random()) if self.day_frames is not None else 0.0
        return self._observe(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one action; ValueError for one outside the vocabulary, or before the first reset."""
        effect = self._control.effects[self.action_vocabulary.check(action)]
        if self._world is None:
            raise ValueError("step() came before the first reset(); call reset() first")
        self._num_steps += 1
        self.heading = (self.heading + effect.turn) % self._control.headings
        self.tilt = min(max(self.tilt + effect.tilt, -self._control.max_tilts), self._control.max_tilts)
        self.slot = (self.slot + effect.slot) % len(HOT_BAR)
        self._swings = effect.dig or effect.place
        if effect.dig:
            self._dig()
        elif effect.place:
            self._place()
        self.body.move(effect, self.angle, self.tilt)
        return self._observe(), 0.0, False, False, self._info()

    def render(self) -> np.ndarray | None:
        """Return the current observation, or None without a render mode."""
        return self._observe() if self.render_mode == "rgb_array" else None

    def policy(self, name: str, rng: np.random.Generator) -> Callable[[], int]:
        """A policy: each call looks at this environment, which has been reset, and returns the next action.

        `explore` does everything that the vocabulary has: it walks towards far targets, and in between turns, idles,
        looks around, digs, builds, leaps and runs into things. With `actions="teco"` it is the policy that the TECO
        data were collected with. `tour` walks through as many biomes as it can. `revisit` goes away and comes back,
        changes things and looks at them again.

        Raises:
            ValueError: no policy of this name.
        """
        return make_policy(name, self, rng)

    def _look_angles(self) -> tuple[float, float]:
        """Yaw and pitch of the eye in radians."""
        return self.angle, self.tilt * math.tau / self._control.tilts

    def _daylight(self) -> Daylight:
        look, time = self._land.look, self.time
        if time is None:
            return frozen_day(look.dark_brightness, look.light_power)
        return daylight_at(time, look.dark_brightness, look.light_power)

    def _observe(self) -> np.ndarray:
        daylight, eye = self._daylight(), self.body.eye
        frame = render(self.world, daylight, self._land.look, eye, *self._look_angles(), self.size)
        if self._control.hot_bar:
            x, y, z = (math.floor(part) % self.world.size for part in eye)
            light = self.world.light[x, z, y] if y < self.world.height else 15
            draw_hand(frame, HOT_BAR[self.slot], float(daylight.brightness[light]), self._swings)
        return frame

    def _info(self) -> dict[str, Any]:
        world, body = self.world, self.body
        return {
            "position": (body.x, body.y, body.z),
            "heading": self.heading * 360 // self._control.headings,
            "pitch": self.tilt * 360 // self._control.tilts,
            "biome": world.biomes[world.biome[int(body.x), int(body.z)]],
            "time": self.time,
            "slot": self.slot,
        }

    def aim(self) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
        """The block in the middle of the picture and the cell before it, each (x, y, z); None if too far."""
        yaw, pitch = self._look_angles()
        direction = (math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch))
        return aim(self.world, self.body.eye, direction)

    def _dig(self) -> None:
        target = self.aim()
        if target is not None and self.world.at(*target[0]) != BEDROCK:
            x, y, z = target[0]
            self.world.dig(x, y, z)

    def _place(self) -> None:
        target = self.aim()
        if target is None:
            return
        cell = target[1] if self.world.at(*target[0]) < FIRST_PLANT else target[0]  # plants give way
        if not self.body.overlaps(cell):
            x, y, z = cell
            self.world.put(x, y, z, HOT_BAR[self.slot])


def _check_choice(name: str, value: object, choices: dict[str, Any]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _read_day_cycle(day_cycle: str | int | float) -> tuple[int | None, float | None]:
    """Frames of a day and the time that stands still; None for either where there is none."""
    if isinstance(day_cycle, str) and day_cycle in ("off", *TIMES):
        return None, TIMES.get(day_cycle)
    if isinstance(day_cycle, int) and not isinstance(day_cycle, bool) and day_cycle >= MIN_DAY_FRAMES:
        return day_cycle, None
    if isinstance(day_cycle, float) and 0.0 <= day_cycle < 1.0:
        return None, day_cycle
    raise ValueError(
        f"day_cycle must be off, {', '.join(TIMES)}, a float in [0, 1) as the time that stands still, or at least "
        f"{MIN_DAY_FRAMES} frames a day, got {day_cycle!r}"
    )
