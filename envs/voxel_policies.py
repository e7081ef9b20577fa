"""What chooses the actions in the voxel world while data are recorded."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from farworld.envs.voxel_blocks import AIR, SOLID, WATER

if TYPE_CHECKING:
    from farworld.envs.voxel import VoxelEnv

POLICIES = ("explore", "tour", "revisit")
ARRIVED = 2.5  # blocks from a target at which it counts as reached
FAR = 65535  # steps to a target that cannot be walked to
MAX_STILL = 8  # steps without moving after which a walker digs or turns away; twice as many where it must jump
MAX_DROP = 3  # blocks that a planned step may lead down

# The collection of the TECO data: forward with this probability, each choice held, and a turn after a long walk.
TECO_FORWARD = 0.9
TECO_HOLD = 5  # steps
TECO_LONGEST_WALK = 50  # steps


def make_policy(name: str, env: VoxelEnv, rng: np.random.Generator) -> Callable[[], int]:
    """The policy of this name for an environment that has been reset; ValueError without one."""
    if name not in POLICIES:
        raise ValueError(f"the policies of the voxel world are {', '.join(POLICIES)}, got {name!r}")
    walker = _Walker(env, rng)
    if name == "explore":
        plan = walker.explore() if walker.can("noop") else walker.collect_teco()
    else:
        plan = walker.tour() if name == "tour" else walker.revisit()
    return lambda: next(plan)


class _Walker:
    """Plans over the actions that an environment has; each plan is an endless stream of them.

    Streams are written with names, so that one plan serves all vocabularies: what a vocabulary lacks is left out.
    """

    def __init__(self, env: VoxelEnv, rng: np.random.Generator) -> None:
        self._env = env
        self._rng = rng
        self._index = {name: index for index, name in enumerate(env.action_vocabulary.names)}
        for side in ("left", "right"):  # the same turn, as TECO calls it
            if f"yaw_{side}" in self._index:
                self._index[f"turn_{side}"] = self._index[f"yaw_{side}"]

    def can(self, name: str) -> bool:
        """Whether the vocabulary has an action."""
        return name in self._index

    def _do(self, name: str, times: int = 1) -> Iterator[int]:
        """An action some times over, or nothing if there is no such action."""
        if name in self._index:
            for _ in range(times):
                yield self._index[name]

    def _some(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high))

    def _pick(self, *names: str) -> str:
        """One of the names that the vocabulary has."""
        known = [name for name in names if name in self._index]
        return known[self._some(0, len(known))]

    # Where it is and where it wants to go

    def _offset(self, target: tuple[float, float]) -> tuple[float, float]:
        """The shortest way to a target, around the torus."""
        body, size = self._env.body, self._env.world.size
        half = size / 2
        return (target[0] - body.x + half) % size - half, (target[1] - body.z + half) % size - half

    def _distance(self, target: tuple[float, float]) -> float:
        return math.hypot(*self._offset(target))

    def _error(self, target: tuple[float, float]) -> float:
        """Turns to the right until a target is straight ahead, from minus half a circle to half a circle."""
        dx, dz = self._offset(target)
        headings = self._env.headings
        return (math.atan2(dx, dz) / math.tau * headings - self._env.heading + headings / 2) % headings - headings / 2

    def _towards(self, target: tuple[float, float], *, gait: str = "forward", tolerance: float = 1.0) -> str:
        """One step of a smooth walk: ahead if the heading is about right, else turning, mostly while walking."""
        error = self._error(target)
        if abs(error) < tolerance:
            return gait
        side = "right" if error > 0 else "left"
        if abs(error) > 4.0 or self._rng.random() < 0.3 or not self.can(f"{gait}_{side}"):
            return f"turn_{side}"
        return f"{gait}_{side}"

    def _pick_target(self) -> tuple[float, float]:
        """A place 20 to 60 blocks away, on land if a few tries find some, and rather ahead than behind."""
        env, size = self._env, self._env.world.size
        for _ in range(6):
            angle = env.angle + self._rng.normal(0.0, 1.0)
            reach = self._rng.uniform(20.0, 60.0)
            x = (env.body.x + reach * math.sin(angle)) % size
            z = (env.body.z + reach * math.cos(angle)) % size
            if not (env.world.blocks[int(x), int(z)] == WATER).any():
                break
        return x, z

    # explore

    def explore(self) -> Iterator[int]:
        """Go to far targets, and do everything else in between."""
        target, patience = self._pick_target(), 60
        places: deque[tuple[float, float]] = deque(maxlen=4)
        while True:
            yield from self._level()
            yield from self._detour()
            body = self._env.body
            places.append((body.x, body.z))
            if len(places) == 4 and self._distance(places[0]) < 3.0:  # caught in a pit or a cave
                yield from self._walk_to(target, patience=50)
            gait = "sprint" if self.can("sprint") and self._rng.random() < 0.3 else "forward"
            for _ in range(self._some(4, 16)):
                before = (body.x, body.z)
                name = self._towards(target, gait=gait)
                yield from self._do(name)
                patience -= 1
                if self._rng.random() < 0.08:
                    yield from self._do(self._pick(f"{gait}_left", f"{gait}_right", "turn_left", "turn_right"))
                walked = self._distance(before)
                if name.startswith(gait) and walked < 0.1:
                    yield from self._get_unstuck()
                    patience -= 20
                if patience <= 0 or self._distance(target) < 3.0:
                    target, patience = self._pick_target(), 60

    def _detour(self) -> Iterator[int]:
        """Something that is no walk to a target, most of the time."""
        rng, luck = self._rng, self._rng.random()
        if luck < 0.10:
            yield from self._do("noop", self._some(2, 8))
        elif luck < 0.28:
            yield from self._look()
        elif luck < 0.34:
            yield from self._do(self._pick("turn_left", "turn_right"), self._some(3, 25))
        elif luck < 0.38:
            yield from self._do("backward", self._some(2, 6))
        elif luck < 0.42:
            yield from self._do(self._pick("strafe_left", "strafe_right", "backward"), self._some(2, 8))
        elif luck < 0.50:
            yield from self._hop()
        elif luck < 0.57:
            yield from self._bump()
        elif luck < 0.65:
            yield from self._turn_and_return()
        elif luck < 0.70:
            yield from self._do("dig" if rng.random() < 0.5 else "place", self._some(1, 3))
        elif luck < 0.76 and self.can("next_block"):
            yield from self._build()

    def _level(self) -> Iterator[int]:
        """Return to a level view, except that a slightly lowered one may stay for a while."""
        env = self._env
        while env.tilt > 0 or env.tilt < -1 or (env.tilt == -1 and self._rng.random() < 0.4):
            yield from self._do("look_up" if env.tilt < 0 else "look_down")

    def _face_level(self) -> Iterator[int]:
        """Return to a level view."""
        while self._env.tilt != 0:
            yield from self._do("look_up" if self._env.tilt < 0 else "look_down")

    def _look(self) -> Iterator[int]:
        """Look up or down, do something there (dig and build only when looking down), often walk on."""
        down = self._rng.random() < 0.7
        yield from self._do("look_down" if down else "look_up", self._some(1, 4))
        luck = self._rng.random()
        if down and luck < 0.75:
            yield from self._do("dig" if luck < 0.4 else "place", self._some(1, 5))
        if luck > 0.3:
            yield from self._do(self._pick("noop", "forward", "forward", "turn_left", "turn_right"), self._some(1, 6))

    def _hop(self) -> Iterator[int]:
        """Jump a few times, on the spot or ahead."""
        yield from self._do(self._pick("jump", "forward_jump", "sprint_jump"))
        yield from self._do(
            self._pick("forward", "jump", "noop", "forward_jump", "sprint_jump", "strafe_left"), self._some(3, 7)
        )

    def _build(self) -> Iterator[int]:
        """Take another block into the hand and put some of it down, now and then as a pillar to stand on."""
        yield from self._do(self._pick("previous_block", "next_block"), self._some(1, 4))
        if self._rng.random() < 0.25:
            yield from self._do("look_down", 5)
            for _ in range(self._some(1, 3)):
                yield from self._do("jump", 2)
                yield from self._do("place", 2)
        else:
            yield from self._do("look_down", self._some(1, 4))
            for _ in range(self._some(1, 4)):
                yield from self._do("place")
                yield from self._do(self._pick("turn_left", "turn_right", "strafe_left", "strafe_right"), 2)

    def _bump(self) -> Iterator[int]:
        """Face a grid direction, where walls stop the body instead of letting it slide, and run until held up."""
        yield from self._face_grid()
        for _ in range(25):
            before = (self._env.body.x, self._env.body.z)
            yield from self._do("forward")
            if before == (self._env.body.x, self._env.body.z):
                yield from self._do("forward", self._some(2, 8))
                return

    def _face_grid(self) -> Iterator[int]:
        """Turn to the nearest direction of the grid."""
        quarter = self._env.headings // 4
        turn = (self._env.heading + quarter // 2) % quarter - quarter // 2
        yield from self._do("turn_left" if turn > 0 else "turn_right", abs(turn))

    def _dig_stairs(self) -> Iterator[int]:
        """Dig one step of a staircase out of a pit or a cave: the block ahead, the one above it, and the ceiling."""
        yield from self._face_level()
        yield from self._face_grid()
        yield from self._nudge(math.floor(self._env.body.x) + 0.5, math.floor(self._env.body.z) + 0.5)
        yield from self._do("forward", 3)
        yield from self._do("dig")
        yield from self._do("look_up", 3)
        yield from self._do("dig", 2)
        yield from self._do("look_up", 2)
        yield from self._do("dig")
        yield from self._face_level()
        yield from self._do("forward", 4)

    def _turn_and_return(self) -> Iterator[int]:
        """Look aside and back, so that the data shows places twice."""
        first, second = ("turn_left", "turn_right") if self._rng.random() < 0.5 else ("turn_right", "turn_left")
        num_turns = self._some(2, 8)
        yield from self._do(first, num_turns)
        yield from self._do("noop", self._some(0, 3))
        yield from self._do(second, num_turns)

    def _get_unstuck(self) -> Iterator[int]:
        """Push on for a moment, then go round the obstacle, or through it."""
        yield from self._do("forward", self._some(2, 7))
        if self._rng.random() < 0.2 and self.can("dig"):
            yield from self._level()
            yield from self._do("dig", 2)
            yield from self._do("forward", 3)
            return
        yield from self._do(self._pick("turn_left", "turn_right"), self._some(3, 9))
        yield from self._do("forward", self._some(4, 12))

    def collect_teco(self) -> Iterator[int]:
        """The published collection: a choice every five steps, and never more than fifty steps straight ahead."""
        ahead = 0
        while True:
            turn = self._rng.random() >= TECO_FORWARD or ahead >= TECO_LONGEST_WALK
            ahead = 0 if turn else ahead + TECO_HOLD
            yield from self._do(self._pick("turn_left", "turn_right") if turn else "forward", TECO_HOLD)

    # tour

    def tour(self) -> Iterator[int]:
        """Walk from biome to biome, each time to the nearest one that was seen least."""
        visits = np.zeros(len(self._env.world.biomes), np.int64)
        gait = "sprint" if self.can("sprint") else "forward"
        while True:
            biome = self._env.world.biome
            visits[biome[int(self._env.body.x), int(self._env.body.z)]] += 1
            target = self._least_seen(visits)
            yield from self._walk_to(target, gait=gait, patience=600)
            yield from self._face_level()
            if self._rng.random() < 0.4:  # look around at what has been reached
                yield from self._do(self._pick("turn_left", "turn_right"), self._some(6, self._env.headings))

    def _least_seen(self, visits: np.ndarray) -> tuple[float, float]:
        """A place deep inside the nearest patch of a biome that was visited least, or a far place."""
        env, size = self._env, self._env.world.size
        present = np.flatnonzero(np.bincount(env.world.biome.ravel(), minlength=len(visits)) > 200)
        if len(present) < 2:
            return self._pick_target()
        here = env.world.biome[int(env.body.x), int(env.body.z)]
        others = present[present != here]
        wanted = others[visits[others] == visits[others].min()]
        candidates = self._rng.integers(0, size, (600, 2))
        kinds = env.world.biome[candidates[:, 0], candidates[:, 1]]
        around = [
            env.world.biome[(candidates[:, 0] + dx) % size, (candidates[:, 1] + dz) % size] == kinds
            for dx, dz in ((8, 0), (-8, 0), (0, 8), (0, -8))
        ]
        deep = np.isin(kinds, wanted) & np.all(around, axis=0)
        places = candidates[deep if deep.any() else np.isin(kinds, wanted)]
        if not len(places):
            return self._pick_target()
        distances = [self._distance((float(x), float(z))) for x, z in places]
        x, z = places[int(np.argmin(distances))]
        return float(x) + 0.5, float(z) + 0.5

    def _walk_to(self, target: tuple[float, float], *, gait: str = "forward", patience: int = 200) -> Iterator[int]:
        """Follow the shortest walkable way to a target, at most for some steps; dig a way where there is none."""
        env = self._env
        steps = np.empty(env.world.blocks.shape, np.uint16)
        edits, still, trouble = -1, 0, 0
        waypoint: tuple[float, float] | None = None
        age = 0  # steps that the waypoint has been gone for
        while patience > 0 and self._distance(target) > ARRIVED:
            if edits != env.world.num_edits:  # the land has changed, or nothing is known yet
                edits, waypoint = env.world.num_edits, None
                _spread_steps(env.world.blocks, int(target[0]), int(target[1]), steps)
            # Held up, it is led from column to column; else it keeps to a waypoint, or two ways could take turns.
            held = still > 1
            if waypoint is None or held or age > 16 or self._distance(waypoint) < 0.7:
                waypoint, age = self._waypoint(steps, 1 if held else 6), 0
            lost = waypoint is None and self._is_down()
            if lost or still > (MAX_STILL if env.motion.climbs else 2 * MAX_STILL):
                still, waypoint, trouble, patience = 0, None, trouble + 1, patience - 20
                if self.can("dig") and (lost or trouble % 3):
                    yield from self._dig_stairs()
                elif trouble > 1:
                    return  # another target may be within reach
                else:
                    yield from self._get_unstuck()
                continue
            before = (env.body.x, env.body.z)
            name = self._towards(waypoint or target, gait=gait, tolerance=0.55 if held else 1.0)
            yield from self._do(name)
            patience, age = patience - 1, age + 1
            if not name.startswith("turn"):
                still = still + 1 if self._distance(before) < 0.05 else 0

    def _is_down(self) -> bool:
        """Whether the body stands or swims, rather than flies."""
        return self._env.body.grounded or self._env.body.water_surface is not None

    def _waypoint(self, steps: np.ndarray, reach: int) -> tuple[float, float] | None:
        """The middle of a column up to so many steps on along the shortest way; None if there is no way."""
        body, world = self._env.body, self._env.world
        surface = body.water_surface
        height = math.floor(body.y if surface is None else surface)
        found, x, z = _follow(world.blocks, steps, reach, int(body.x), int(body.z), height)
        return ((x + 0.5) % world.size, (z + 0.5) % world.size) if found else None

    # revisit

    def revisit(self) -> Iterator[int]:
        """Go away and come back, in all the ways there are to see a place again."""
        while True:
            yield from self._face_level()
            luck = self._rng.random()
            if luck < 0.2:
                yield from self._spin_twice()
            elif luck < 0.35:
                yield from self._turn_and_return()
            elif luck < 0.55 and self.can("backward"):
                yield from self._out_and_back_out()
            elif luck < 0.8 or not self.can("dig"):
                yield from self._round_trip(self._some(8, 22))
            else:
                yield from self._change_and_look_again()
            if self._rng.random() < 0.5:
                yield from self._walk_to(self._pick_target(), patience=self._some(15, 50))

    def _spin_twice(self) -> Iterator[int]:
        """Look all around, once more, and perhaps back the other way."""
        side, other = ("turn_left", "turn_right") if self._rng.random() < 0.5 else ("turn_right", "turn_left")
        yield from self._do(side, self._env.headings)
        yield from self._do("noop", self._some(0, 4))
        yield from self._do(side if self._rng.random() < 0.6 else other, self._env.headings)

    def _out_and_back_out(self) -> Iterator[int]:
        """Walk ahead and the same way backwards, seeing the same pictures in reverse."""
        pose, body = self._pose(), self._env.body
        num_steps = 0
        for _ in range(self._some(5, 30)):
            before = (body.x, body.z)
            yield from self._do("forward")
            num_steps += 1
            if self._distance(before) < 0.05:
                break
        yield from self._do("noop", self._some(0, 3))
        yield from self._do("backward", num_steps)
        yield from self._return_to(pose)

    def _round_trip(self, reach: int) -> Iterator[int]:
        """Walk away, and come back to where and how one stood."""
        pose = self._pose()
        body, angle = self._env.body, self._env.angle + self._rng.normal(0.0, 0.8)
        target = (body.x + reach * math.sin(angle), body.z + reach * math.cos(angle))
        size = self._env.world.size
        yield from self._walk_to((target[0] % size, target[1] % size), patience=4 * reach)
        if self._rng.random() < 0.3:
            yield from self._do(self._pick("turn_left", "turn_right"), self._some(4, self._env.headings))
        yield from self._return_to(pose)
        yield from self._do("noop", self._some(0, 4))
        if self._rng.random() < 0.5:
            yield from self._turn_and_return()

    def _change_and_look_again(self) -> Iterator[int]:
        """Dig a hole or put up a block, look away or walk away, and look again."""
        yield from self._do("look_down", self._some(1, 4))
        if self._rng.random() < 0.4:
            yield from self._do("next_block", self._some(0, 5))
        yield from self._do(self._pick("dig", "place"), self._some(1, 4))
        yield from self._do("noop", self._some(0, 3))
        luck, tilt = self._rng.random(), self._env.tilt
        if luck < 0.4:
            yield from self._turn_and_return()
        elif luck < 0.7:
            side = self._pick("turn_left", "turn_right")
            yield from self._do(side, self._env.headings)
        else:
            yield from self._face_level()
            yield from self._round_trip(self._some(5, 14))
            yield from self._do("look_down" if tilt < 0 else "look_up", abs(tilt))
        yield from self._do("noop", self._some(1, 5))

    def _pose(self) -> tuple[float, float, int, int]:
        """Place, heading and tilt of now."""
        return self._env.body.x, self._env.body.z, self._env.heading, self._env.tilt

    def _return_to(self, pose: tuple[float, float, int, int]) -> Iterator[int]:
        """Go back to a pose, as nearly as strides and turns allow."""
        env, (x, z, heading, tilt) = self._env, pose
        yield from self._walk_to((x, z), patience=150)
        for _ in range(12):  # the last blocks straight on
            if self._distance((x, z)) < 0.4 or abs(self._error((x, z))) > env.headings / 2:
                break
            yield from self._do(self._towards((x, z)))
        headings = env.headings
        turn = (heading - env.heading + headings // 2) % headings - headings // 2
        yield from self._do("turn_right" if turn > 0 else "turn_left", abs(turn))
        yield from self._nudge(x, z)
        yield from self._do("look_up" if tilt > env.tilt else "look_down", abs(tilt - env.tilt))

    def _nudge(self, x: float, z: float) -> Iterator[int]:
        """Single steps ahead, back and aside while each brings the body nearer to a place."""
        env = self._env
        for _ in range(6):
            dx, dz = self._offset((x, z))
            sin, cos = math.sin(env.angle), math.cos(env.angle)
            ahead, aside = dx * sin + dz * cos, dx * cos - dz * sin
            stride = env.motion.stride
            moves = {"forward": ahead, "backward": -ahead, "strafe_right": aside, "strafe_left": -aside}
            name, gain = max(((n, g) for n, g in moves.items() if self.can(n)), key=lambda move: move[1])
            if gain < 0.55 * stride:
                return
            yield from self._do(name)


@njit(cache=True)
def _can_stand(blocks, x, z, y):
    """Whether a body can have its feet in a cell: on something solid, or at the surface of water."""
    if y < 1 or y >= blocks.shape[2] or SOLID[blocks[x, z, y]]:
        return False
    above = blocks[x, z, y + 1] if y + 1 < blocks.shape[2] else AIR
    if SOLID[above]:
        return False
    return above != WATER if blocks[x, z, y] == WATER else SOLID[blocks[x, z, y - 1]] == 1


@njit(cache=True)
def _spread_steps(blocks, x, z, steps):
    """Breadth-first from all places in a column: write how many steps away from it each (x, z, y) is, FAR if no way.

    A step leads to one of the four columns around, one block up at most or down to the first floor, three blocks at
    most.
    """
    wrap, height = blocks.shape[0] - 1, blocks.shape[2]
    steps[:] = FAR
    queue = [(x, z, y) for y in range(height) if _can_stand(blocks, x, z, y)]
    for i, k, j in queue:
        steps[i, k, j] = 0
    head = 0
    while head < len(queue):
        i, k, j = queue[head]
        head += 1
        for side in range(4):
            u, v = (i + (side == 0) - (side == 1)) & wrap, (k + (side == 2) - (side == 3)) & wrap
            for y in range(max(j - 1, 0), min(j + MAX_DROP + 1, height)):
                if steps[u, v, y] == FAR and _can_stand(blocks, u, v, y) and _has_headroom(blocks, u, v, y, i, k, j):
                    steps[u, v, y] = steps[i, k, j] + 1
                    queue.append((u, v, y))


@njit(cache=True)
def _has_headroom(blocks, x, z, y, i, k, j):
    """Whether a body that can stand in (x, z, y) and in (i, k, j) beside it gets from there to here with its head."""
    for above in range(y + 2, min(j + 2, blocks.shape[2])):  # jumping up
        if SOLID[blocks[x, z, above]]:
            return False
    for above in range(j + 2, min(y + 2, blocks.shape[2])):  # stepping off
        if SOLID[blocks[i, k, above]]:
            return False
    return True


@njit(cache=True)
def _follow(blocks, steps, reach, x, z, y):
    """Whether there is a way from a place, and x and z of the column up to so many steps on that is straight ahead.

    Straight ahead is what lies along the grid, or across level ground from all of which there are ways.
    """
    wrap, height = steps.shape[0] - 1, steps.shape[2]
    for drop in range(4):  # jumping, or on the edge of a block
        if 0 <= y - drop < height and steps[x, z, y - drop] != FAR:
            y -= drop
            break
    else:
        return False, x, z
    i, k, j, level = x, z, y, True
    end_x, end_z = x, z
    for count in range(reach):
        best, u, v, w = steps[i & wrap, k & wrap, j], i, k, j
        for side in range(4):
            a, b = i + (side == 0) - (side == 1), k + (side == 2) - (side == 3)
            for c in range(max(j - MAX_DROP, 0), min(j + 2, height)):
                there = steps[a & wrap, b & wrap, c]
                if there < best and _has_headroom(blocks, i & wrap, k & wrap, j, a & wrap, b & wrap, c):
                    best, u, v, w = there, a, b, c
        if (u, v) == (i, k):
            break
        i, k, j, level = u, v, w, level and w == y
        straight = i == x or k == z
        if not straight and level:
            straight = True
            for a in range(min(x, i), max(x, i) + 1):
                for b in range(min(z, k), max(z, k) + 1):
                    straight &= steps[a & wrap, b & wrap, y] != FAR
        if not straight or abs(i - x) + abs(k - z) != count + 1:
            break
        end_x, end_z = i, k
    return True, end_x, end_z
