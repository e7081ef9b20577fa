"""farworld/Voxel-v0: a small Minecraft-style world."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from numba import njit

from farworld.actions import Action, ActionVocabulary
from farworld.envs.voxel_render import render
from farworld.envs.voxel_terrain import (
    AIR,
    BEDROCK,
    GRASS,
    ICE,
    PLANKS,
    SAND,
    SNOW,
    WATER,
    WATER_SURFACE,
    WORLD_HEIGHT,
    WORLD_SIZE,
    WRAP,
    World,
    generate_world,
)

VOCABULARY = ActionVocabulary(
    (
        Action(name="noop"),
        Action(name="forward", keys=("up",)),
        Action(name="backward", keys=("down",)),
        Action(name="turn_left", keys=("left",)),
        Action(name="turn_right", keys=("right",)),
        Action(name="forward_left", keys=("up", "left")),
        Action(name="forward_right", keys=("up", "right")),
        Action(name="look_up", keys=("w",)),
        Action(name="look_down", keys=("s",)),
        Action(name="jump", keys=("space",)),
        Action(name="dig", keys=("d",)),
        Action(name="place", keys=("a",)),
    )
)
NOOP, FORWARD, BACKWARD, TURN_LEFT, TURN_RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(7)
LOOK_UP, LOOK_DOWN, JUMP, DIG, PLACE = range(7, 12)

HEADINGS = 24  # a turn is 15 degrees
MAX_PITCH = 3  # in steps of 15 degrees
STRIDE = 0.35  # blocks a step
BODY_RADIUS = 0.3  # blocks
BODY_HEIGHT = 1.8  # blocks
EYE_HEIGHT = 1.62  # blocks above the feet
JUMP_SPEED = 0.62  # blocks a step
GRAVITY = 0.22  # blocks a step, each step
MAX_FALL = 0.9  # blocks a step; below one block, so that no floor is skipped
SWIM_DEPTH = 1.1  # blocks that the feet of a swimmer hang below the water surface
SWIM_SPEED = 0.25  # blocks a step, upwards and downwards
REACH = 4.0  # blocks from the eye at which digging and placing still works


class VoxelEnv(gymnasium.Env[np.ndarray, int]):
    """Walk, swim, dig and build in a procedural block world.

    ## Description
    A new world for every seed: 128 x 128 columns of blocks, 48 high, with meadows, swamps, deserts, tundra,
    trees, lakes and caves. The world has no edge: whoever walks 128 blocks straight ahead is back. What is
    dug stays dug and what is placed stays; water next to a new hole fills it.

    ## Action space
    `Discrete(12)`; the keys are those of `action_vocabulary`.

    | index | name | keys | effect |
    |---|---|---|---|
    | 0 | noop | | nothing |
    | 1 | forward | up | walk 0.35 blocks ahead; steps one block up are taken, walls are slid along |
    | 2 | backward | down | walk back |
    | 3, 4 | turn_left, turn_right | left, right | turn by 15 degrees |
    | 5, 6 | forward_left, forward_right | up + left, up + right | turn, then walk ahead |
    | 7, 8 | look_up, look_down | w, s | tilt by 15 degrees, at most 45 from level |
    | 9 | jump | space | leap up and ahead; the flight goes on through the next steps |
    | 10 | dig | d | remove the block in the middle of the picture, if within 4 blocks |
    | 11 | place | a | put planks on the face in the middle of the picture, if within 4 blocks |

    ## Observation space
    `Box(0, 255, (size, size, 3), uint8)`: the view from the eyes, 70 degrees wide, 10 frames a second.

    ## Rewards
    Always 0: there is no goal.

    ## Starting state
    On dry ground under the open sky at a random place, heading anywhere, looking level. `info` has
    `position` (x, y, z of the feet in blocks), `heading` and `pitch` in degrees.

    ## Episode end
    Never terminates, and truncates only under a time limit wrapper.

    ## Arguments
    - `size`: height and width of the observation in pixels, a multiple of 16, default 128.
    - `render_mode`: `None` or `"rgb_array"`; `render()` returns the observation.

    ## Version history
    - v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_vocabulary = VOCABULARY

    def __init__(self, size: int = 128, render_mode: str | None = None) -> None:
        if size < 16 or size % 16:
            raise ValueError(f"size must be a positive multiple of 16 pixels, got {size}; 128 is the default")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.size = size
        self.render_mode = render_mode
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(len(VOCABULARY))
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._world: World | None = None

    @property
    def world(self) -> World:
        """The blocks of now; ValueError before the first reset."""
        if self._world is None:
            raise ValueError("there is no world before the first reset(); call reset() first")
        return self._world

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Make a new world and stand somewhere in it."""
        super().reset(seed=seed)
        self._world = generate_world(self.np_random)
        x, y, z = _find_start(self.world, self.np_random)
        self._x, self._y, self._z = x + 0.5, float(y), z + 0.5
        self._heading = int(self.np_random.integers(HEADINGS))
        self._pitch = 0
        self._fall = 0.0  # upward speed in blocks a step
        self._leaping = False
        return self._observe(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one action; ValueError for one outside the vocabulary, or before the first reset."""
        action = VOCABULARY.check(action)
        if self._world is None:
            raise ValueError("step() came before the first reset(); call reset() first")
        turn = (action in (TURN_RIGHT, FORWARD_RIGHT)) - (action in (TURN_LEFT, FORWARD_LEFT))
        self._heading = (self._heading + turn) % HEADINGS
        tilt = (action == LOOK_UP) - (action == LOOK_DOWN)
        self._pitch = min(max(self._pitch + tilt, -MAX_PITCH), MAX_PITCH)
        if action == DIG:
            self._dig()
        elif action == PLACE:
            self._place()
        if action == JUMP and self._grounded():
            self._fall, self._leaping = JUMP_SPEED, True
        self._move_vertically()
        ahead = action in (FORWARD, FORWARD_LEFT, FORWARD_RIGHT, JUMP) or self._leaping
        if action == BACKWARD:
            self._walk(-STRIDE)
        elif ahead:
            self._walk(STRIDE)
        return self._observe(), 0.0, False, False, self._info()

    def render(self) -> np.ndarray | None:
        """Return the current observation, or None without a render mode."""
        return self._observe() if self.render_mode == "rgb_array" else None

    def explorer(self, rng: np.random.Generator) -> Callable[[], int]:
        """An exploration policy: each call looks at this environment and returns the next action.

        It walks towards far targets, and in between turns, idles, looks around, digs, builds, leaps and runs
        into things.
        """
        plan = _explore(self, rng)
        return lambda: next(plan)

    def _observe(self) -> np.ndarray:
        world = self.world
        eye = (self._x, self._y + EYE_HEIGHT, self._z)
        yaw, pitch = self._heading * math.tau / HEADINGS, self._pitch * math.tau / HEADINGS
        return render(world, eye, yaw, pitch, self.size)

    def _info(self) -> dict[str, Any]:
        return {
            "position": (self._x, self._y, self._z),
            "heading": self._heading * 360 // HEADINGS,
            "pitch": self._pitch * 360 // HEADINGS,
        }

    def _free(self, x: float, y: float, z: float) -> bool:
        return not _collides(self.world.blocks, x, y, z)

    def _grounded(self) -> bool:
        return not self._free(self._x, self._y - 0.01, self._z)

    def _water_surface(self) -> float | None:
        """Height of the water that the feet are in, or None."""
        column = self.world.blocks[int(self._x) & WRAP, int(self._z) & WRAP]
        y = int(math.floor(self._y + 0.2))
        if not 0 <= y < WORLD_HEIGHT or column[y] != WATER:
            return None
        while y + 1 < WORLD_HEIGHT and column[y + 1] == WATER:
            y += 1
        return y + WATER_SURFACE

    def _move_vertically(self) -> None:
        """Fall, rise or swim by one step, and stop at floors and ceilings."""
        surface = self._water_surface()
        if surface is not None:
            change = min(max(surface - SWIM_DEPTH - self._y, -SWIM_SPEED), SWIM_SPEED)
            self._fall, self._leaping = 0.0, False
        else:
            change = self._fall
            self._fall = max(self._fall - GRAVITY, -MAX_FALL)
        if self._free(self._x, self._y + change, self._z):
            self._y += change
            # Level ground needs no falling speed, or the first step off a ledge would drop at once.
            if self._fall < 0.0 and self._grounded():
                self._fall, self._leaping = 0.0, False
            return
        if change <= 0.0:
            self._y = float(math.floor(self._y + 1e-6))
            self._leaping = False
        self._fall = 0.0

    def _walk(self, distance: float) -> None:
        """Move along the heading, one axis after the other, which lets the body slide along walls."""
        angle = self._heading * math.tau / HEADINGS
        climbs = self._grounded() or self._water_surface() is not None
        for dx, dz in ((distance * math.sin(angle), 0.0), (0.0, distance * math.cos(angle))):
            x, z = (self._x + dx) % WORLD_SIZE, (self._z + dz) % WORLD_SIZE
            if self._free(x, self._y, z):
                self._x, self._z = x, z
                continue
            higher = math.ceil(self._y) + 1.0
            if climbs and self._free(x, higher, z) and self._free(self._x, higher, self._z):
                self._x, self._y, self._z = x, higher, z

    def _aim(self) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
        """The block in the middle of the picture and the cell before it, each (x, y, z); None if too far."""
        yaw, pitch = self._heading * math.tau / HEADINGS, self._pitch * math.tau / HEADINGS
        direction = (math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch))
        eye = (self._x, self._y + EYE_HEIGHT, self._z)
        before = None
        for step in range(int(REACH * 32) + 1):
            x, y, z = (int(math.floor(eye[i] + direction[i] * step / 32)) for i in range(3))
            cell = (x, y, z)
            if not 0 <= cell[1] < WORLD_HEIGHT:
                return None
            if self.world.blocks[cell[0] & WRAP, cell[2] & WRAP, cell[1]] not in (AIR, WATER):
                return None if before is None else (cell, before)
            before = cell
        return None

    def _dig(self) -> None:
        target = self._aim()
        if target is None:
            return
        x, y, z = target[0]
        blocks = self.world.blocks
        if blocks[x & WRAP, z & WRAP, y] == BEDROCK:
            return
        around = ((x + 1, y, z), (x - 1, y, z), (x, y, z + 1), (x, y, z - 1), (x, y + 1, z))
        wet = any(blocks[i & WRAP, k & WRAP, min(j, WORLD_HEIGHT - 1)] == WATER for i, j, k in around)
        self.world.set_block(x, y, z, WATER if wet else AIR)

    def _place(self) -> None:
        target = self._aim()
        if target is None:
            return
        x, y, z = target[1]
        blocks = self.world.blocks
        previous = blocks[x & WRAP, z & WRAP, y]
        blocks[x & WRAP, z & WRAP, y] = PLANKS
        if self._free(self._x, self._y, self._z):
            self.world.set_block(x, y, z, PLANKS)
        else:
            blocks[x & WRAP, z & WRAP, y] = previous


@njit(cache=True)
def _collides(blocks, x, y, z):
    """Whether a body with its feet at x, y, z would stand in a solid block."""
    if y < 0.0:
        return True
    for i in range(math.floor(x - BODY_RADIUS), math.floor(x + BODY_RADIUS) + 1):
        for k in range(math.floor(z - BODY_RADIUS), math.floor(z + BODY_RADIUS) + 1):
            for j in range(math.floor(y), min(math.floor(y + BODY_HEIGHT) + 1, WORLD_HEIGHT)):
                block = blocks[i & WRAP, k & WRAP, j]
                if block != AIR and block != WATER:
                    return True
    return False


def _find_start(world: World, rng: np.random.Generator) -> tuple[int, int, int]:
    """A random x, y, z for the feet: on natural ground, under the sky, with room to look around."""
    ground = world.tops.astype(np.int64) - 1
    surface = np.take_along_axis(world.blocks, ground[:, :, None], axis=2)[:, :, 0]
    dry = np.isin(surface, (GRASS, SAND, SNOW, ICE))
    # A place is open if the ground around it is at most one block higher; trees count as ground.
    clear = dry.copy()
    for dx in range(-2, 3):
        for dz in range(-2, 3):
            clear &= np.roll(ground, (dx, dz), (0, 1)) <= ground + 1
    places = np.argwhere(clear if clear.any() else dry if dry.any() else ground >= 0)
    x, z = places[rng.integers(len(places))]
    return int(x), int(ground[x, z]) + 1, int(z)


def _explore(env: VoxelEnv, rng: np.random.Generator) -> Iterator[int]:
    """The endless stream of actions behind VoxelEnv.explorer."""
    target, patience = _pick_target(env, rng), 60
    places: deque[tuple[float, float]] = deque(maxlen=4)
    while True:
        yield from _level(env, rng)
        luck = rng.random()
        if luck < 0.10:
            yield from [NOOP] * int(rng.integers(2, 8))
        elif luck < 0.28:
            yield from _look(rng)
        elif luck < 0.34:
            yield from [int(rng.choice((TURN_LEFT, TURN_RIGHT)))] * int(rng.integers(3, 25))
        elif luck < 0.40:
            yield from [BACKWARD] * int(rng.integers(2, 6))
        elif luck < 0.50:
            yield from [JUMP] + [int(rng.choice((FORWARD, JUMP, NOOP)))] * int(rng.integers(3, 7))
        elif luck < 0.57:
            yield from _bump(env, rng)
        elif luck < 0.65:
            yield from _turn_and_return(rng)
        elif luck < 0.70:
            yield from [DIG if rng.random() < 0.5 else PLACE] * int(rng.integers(1, 3))
        places.append((env._x, env._z))
        if len(places) == 4 and _distance(env, places[0]) < 3.0:  # caught in a pit or a cave
            yield from _dig_stairs(env)
            yield from _dig_stairs(env)
        for _ in range(int(rng.integers(4, 16))):
            before = (env._x, env._z)
            action = _towards(env, target, rng)
            yield action
            patience -= 1
            if rng.random() < 0.08:
                yield int(rng.choice((FORWARD_LEFT, FORWARD_RIGHT, TURN_LEFT, TURN_RIGHT)))
            walked = abs(env._x - before[0]) + abs(env._z - before[1])
            if action in (FORWARD, FORWARD_LEFT, FORWARD_RIGHT) and walked < 0.1:
                yield from _get_unstuck(env, rng)
                patience -= 20
            if patience <= 0 or _distance(env, target) < 3.0:
                target, patience = _pick_target(env, rng), 60


def _pick_target(env: VoxelEnv, rng: np.random.Generator) -> tuple[float, float]:
    """A place 20 to 60 blocks away, on land if a few tries find some, and rather ahead than behind."""
    blocks = env.world.blocks
    for _ in range(6):
        angle = env._heading * math.tau / HEADINGS + rng.normal(0.0, 1.0)
        reach = rng.uniform(20.0, 60.0)
        x, z = env._x + reach * math.sin(angle), env._z + reach * math.cos(angle)
        if not (blocks[int(x) & WRAP, int(z) & WRAP] == WATER).any():
            break
    return x % WORLD_SIZE, z % WORLD_SIZE


def _offset(env: VoxelEnv, target: tuple[float, float]) -> tuple[float, float]:
    """The shortest way to a target, around the torus."""
    half = WORLD_SIZE / 2
    dx = (target[0] - env._x + half) % WORLD_SIZE - half
    dz = (target[1] - env._z + half) % WORLD_SIZE - half
    return dx, dz


def _distance(env: VoxelEnv, target: tuple[float, float]) -> float:
    return math.hypot(*_offset(env, target))


def _towards(env: VoxelEnv, target: tuple[float, float], rng: np.random.Generator) -> int:
    """One step of a smooth walk: ahead if the heading is about right, else turning, mostly while walking."""
    dx, dz = _offset(env, target)
    wanted = math.atan2(dx, dz) / math.tau * HEADINGS
    error = (wanted - env._heading + HEADINGS / 2) % HEADINGS - HEADINGS / 2
    if abs(error) < 1.0:
        return FORWARD
    if abs(error) > 4.0 or rng.random() < 0.3:
        return TURN_RIGHT if error > 0 else TURN_LEFT
    return FORWARD_RIGHT if error > 0 else FORWARD_LEFT


def _level(env: VoxelEnv, rng: np.random.Generator) -> Iterator[int]:
    """Return to a level view, except that a slightly lowered one may stay for a while."""
    while env._pitch > 0 or env._pitch < -1 or (env._pitch == -1 and rng.random() < 0.4):
        yield LOOK_UP if env._pitch < 0 else LOOK_DOWN


def _look(rng: np.random.Generator) -> Iterator[int]:
    """Look up or down, do something there (dig and build only when looking down), often walk on."""
    down = rng.random() < 0.7
    yield from [LOOK_DOWN if down else LOOK_UP] * int(rng.integers(1, 4))
    luck = rng.random()
    if down and luck < 0.75:
        yield from [DIG if luck < 0.4 else PLACE] * int(rng.integers(1, 5))
    if luck > 0.3:
        action = int(rng.choice((NOOP, FORWARD, FORWARD, TURN_LEFT, TURN_RIGHT)))
        yield from [action] * int(rng.integers(1, 6))


def _bump(env: VoxelEnv, rng: np.random.Generator) -> Iterator[int]:
    """Face a grid direction, where walls stop the body instead of letting it slide, and run until held up."""
    quarter = HEADINGS // 4
    turn = (env._heading + quarter // 2) % quarter - quarter // 2
    yield from [TURN_LEFT if turn > 0 else TURN_RIGHT] * abs(turn)
    for _ in range(25):
        before = (env._x, env._z)
        yield FORWARD
        if before == (env._x, env._z):
            yield from [FORWARD] * int(rng.integers(2, 8))
            return


def _dig_stairs(env: VoxelEnv) -> Iterator[int]:
    """Dig one step of a staircase out of a pit or a cave: the block ahead and the one above it."""
    yield from [LOOK_UP] * max(-env._pitch, 0) + [LOOK_DOWN] * max(env._pitch, 0)
    yield from [FORWARD, FORWARD, DIG] + [LOOK_UP] * MAX_PITCH + [DIG, DIG] + [LOOK_DOWN] * MAX_PITCH
    yield from [FORWARD] * 4


def _turn_and_return(rng: np.random.Generator) -> Iterator[int]:
    """Look aside and back, so that the data shows places twice."""
    first, second = (TURN_LEFT, TURN_RIGHT) if rng.random() < 0.5 else (TURN_RIGHT, TURN_LEFT)
    num_turns = int(rng.integers(2, 8))
    yield from [first] * num_turns
    yield from [NOOP] * int(rng.integers(0, 3))
    yield from [second] * num_turns


def _get_unstuck(env: VoxelEnv, rng: np.random.Generator) -> Iterator[int]:
    """Push on for a moment, then go round the obstacle, or through it."""
    yield from [FORWARD] * int(rng.integers(2, 7))
    if rng.random() < 0.2:
        yield from _level(env, rng)
        yield from [DIG, DIG, FORWARD, FORWARD, FORWARD]
        return
    yield from [int(rng.choice((TURN_LEFT, TURN_RIGHT)))] * int(rng.integers(3, 9))
    yield from [FORWARD] * int(rng.integers(4, 12))
