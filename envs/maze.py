"""farworld/Maze-v0: a small DMLab-style world, drawn by a ray caster on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium
import numpy as np

from farworld.envs.maze_layout import (
    Cell,
    Decals,
    Look,
    Sky,
    build_scene,
    carve,
    dress,
    free_cells,
    free_neighbours,
    max_goals,
    max_objects,
    middle,
    place_goals,
    place_objects,
)
from farworld.envs.maze_motion import ACTIONS, MOVES, Pose, move_camera
from farworld.envs.maze_policies import MAZE_POLICIES, make_maze_policy
from farworld.envs.maze_render import Scene, Thing, draw

GOAL_REACH = 0.4  # cells from the middle of a goal at which it is reached
SMALLEST_GRID = 5  # cells a side

ActionSet = Literal["full", "walk", "teco"]
PresetName = Literal["default", "dmlab"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What the arguments that a caller leaves out are.

    Attributes:
        actions: the vocabulary.
        turn_degrees: of one turn.
        look: how the maze is dressed.
        published: whether `explore` is the policy that TECO's DMLab data were collected with.
    """

    actions: ActionSet
    turn_degrees: float
    look: Look
    published: bool


PRESETS: dict[PresetName, Preset] = {
    "default": Preset(actions="full", turn_degrees=20.0, look=Look(), published=False),
    # In the real episode all walls are equally bright, whatever way they face.
    "dmlab": Preset(actions="teco", turn_degrees=20.0, look=Look(light=(246, 246, 249)), published=True),
}


class MazeEnv(gymnasium.Env[np.ndarray, np.int64]):
    """A first-person maze in the style of DeepMind Lab, made to be explored and remembered.

    A square grid of cells whose outer ring is wall, with a random maze inside in which 15 % of the inner walls
    are opened, so that there are loops. Each quadrant has its own wall and floor, and some walls bear a decal.
    The same seed and the same actions give the same frames, and the same seed gives the same maze in every
    vocabulary and every dress. `preset="dmlab"` is the set-up of TECO's DMLab data (arXiv:2210.02396).

    ## Action space
    `Discrete(9)`, `Discrete(7)` with `actions="walk"`, `Discrete(3)` with `actions="teco"`;
    `env.unwrapped.action_vocabulary` has the names and keys. A dash means that a vocabulary lacks the action.

    | name          | full | walk | teco | keys      | effect                                          |
    |---------------|------|------|------|-----------|-------------------------------------------------|
    | noop          | 0    | 0    | -    |           | nothing                                         |
    | forward       | 1    | 1    | 2    | up        | walk 0.4 cell; slides along walls               |
    | backward      | 2    | 2    | -    | down      | walk back 0.4 cell                              |
    | strafe_left   | 3    | -    | -    | a         | walk 0.4 cell to the left, looking ahead        |
    | strafe_right  | 4    | -    | -    | d         | walk 0.4 cell to the right, looking ahead       |
    | turn_left     | 5    | 3    | 0    | left      | turn by `turn_degrees`                          |
    | turn_right    | 6    | 4    | 1    | right     | turn by `turn_degrees`                          |
    | forward_left  | 7    | 5    | -    | up, left  | turn left, then walk                            |
    | forward_right | 8    | 6    | -    | up, right | turn right, then walk                           |

    The camera keeps 0.25 cells away from every wall. Objects do not stop it, but stand where it never comes.

    ## Observation space
    `Box(0, 255, (size, size, 3), uint8)`: the RGB view, 90 degrees wide, from half the height of the walls.

    `info` has, after `reset` and after each `step`:
    - `position`: (x, y) in cells, float64; x to the east, y to the south.
    - `heading`: degrees in [0, 360), 0 is east, clockwise.
    - `goals_reached`: goals reached in this episode, 0 without goals.
    - `respawned`: whether this step reached a goal, so that the view is from somewhere else.

    ## Reward
    1.0 for a step that ends within 0.4 cells of the middle of a goal, else 0.0; always 0.0 without goals.
    Whoever reaches a goal is put down somewhere else at once, as in DMLab's explore-goals levels: the goal stays
    where it is, to be found again from there. The observation of that step is the view from the new place.

    ## Starting state
    A random maze and the middle of a random cell, looking along a free direction. The goals float in other rooms.
    After a goal is reached, the same way of starting, in the same maze.

    ## Episode end
    Never terminates; truncated only by a time limit given to `gymnasium.make`.

    ## Arguments
    ```python
    gymnasium.make("farworld/Maze-v0", preset="dmlab")
    gymnasium.make("farworld/Maze-v0", grid_size=15, goals=2, objects=12, decals="pictures", sky="clouds", size=128)
    ```
    - `preset`: what the arguments that are not given are. `"default"`, or `"dmlab"`: the actions of TECO's data,
      walls equally bright on all sides as in their frames, and their collection policy as `explore`.
    - `actions`: `"full"`, `"walk"` or `"teco"`; the default is `"full"`, in preset dmlab `"teco"`.
    - `size`: height and width of the observation, a positive multiple of 16; default 64.
    - `grid_size`: cells a side with the outer walls, odd and at least 5; default 9, which leaves 7 x 7.
    - `goals`: how many goals there are; default 0, at most one in every second room (8 in the default grid).
    - `objects`: how many objects stand about, of several shapes and colours; default 0, at most one in each
      corner of each room (64 in the default grid).
    - `decals`: what some walls bear: `"plates"` (yellow, as in DMLab; default), `"pictures"` (24 shapes and
      colours, landmarks to know a place by) or `"none"`.
    - `sky`: `"plain"` (light blue, as in TECO's data; default) or `"clouds"`, which tell the directions apart.
    - `turn_degrees`: of one turn, above 0 and at most 90; default 20, of which 18 make an exact circle. The one
      real DMLab episode that was measured turns by 16.9 degrees a frame.
    - `render_mode`: `None` or `"rgb_array"`; `render()` returns the observation.

    ## Policies
    `env.unwrapped.policy(name, rng)` gives a function that returns the next action; see `POLICIES`.

    ## Version history
    - v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 7.5}
    POLICIES: tuple[str, ...] = MAZE_POLICIES

    def __init__(
        self,
        *,
        preset: PresetName = "default",
        actions: ActionSet | None = None,
        size: int = 64,
        grid_size: int = 9,
        goals: int = 0,
        objects: int = 0,
        decals: Decals | None = None,
        sky: Sky | None = None,
        turn_degrees: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.preset = PRESETS[_one_of("preset", preset, PresetName)]
        look = self.preset.look
        actions = _one_of("actions", self.preset.actions if actions is None else actions, ActionSet)
        self.look = Look(
            decals=_one_of("decals", look.decals if decals is None else decals, Decals),
            sky=_one_of("sky", look.sky if sky is None else sky, Sky),
            light=look.light,
        )
        if not _is_whole(size) or size <= 0 or size % 16:
            raise ValueError(f"size must be a positive multiple of 16, got {size!r}; the usual one is 64")
        if not _is_whole(grid_size) or grid_size < SMALLEST_GRID or grid_size % 2 == 0:
            raise ValueError(f"grid_size must be odd and at least {SMALLEST_GRID}, got {grid_size!r}; DMLab's is 9")
        for name, count, most in (("goals", goals, max_goals(grid_size)), ("objects", objects, max_objects(grid_size))):
            if not _is_whole(count) or not 0 <= count <= most:
                raise ValueError(
                    f"{name} must be a whole number in [0, {most}] in a grid of {grid_size}, got {count!r}; "
                    "a larger grid_size has room for more"
                )
        degrees = self.preset.turn_degrees if turn_degrees is None else turn_degrees
        if isinstance(degrees, bool) or not isinstance(degrees, (int, float)) or not 0 < degrees <= 90:
            raise ValueError(f"turn_degrees must be above 0 and at most 90, got {turn_degrees!r}; the usual one is 20")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.size = size
        self.grid_size = grid_size
        self.num_goals = goals
        self.num_objects = objects
        self.turn_degrees = float(degrees)
        self.render_mode = render_mode
        self.action_vocabulary = ACTIONS[actions]
        self._moves = [MOVES[name] for name in self.action_vocabulary.names]
        self.action_space = gymnasium.spaces.Discrete(len(self.action_vocabulary))
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._scene: Scene | None = None
        self._pose = Pose(0.0, 0.0, 0.0)
        self._goals: list[Thing] = []
        self._goals_reached = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Build a new maze and stand somewhere in it; see the class for what is returned."""
        super().reset(seed=seed)
        rng = self.np_random
        walls = carve(self.grid_size, rng)
        clothes = dress(walls, rng)
        self._pose = _draw_start(walls, free_cells(walls), rng)
        # What an argument adds is drawn last: it changes nothing else.
        self._goals = place_goals(walls, self.num_goals, self._pose.cell, rng) if self.num_goals else []
        things = place_objects(walls, self.num_objects, rng) if self.num_objects else []
        self._scene = build_scene(walls, clothes, self.look, [*self._goals, *things], rng)
        self._goals_reached = 0
        return self._observe(), self._info()

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Turn, then walk; ValueError for an action outside the vocabulary, or before the first reset."""
        self._pose = self.preview(self._pose, action)
        reached = any(math.dist(self._pose[:2], (goal.x, goal.y)) < GOAL_REACH for goal in self._goals)
        if reached:
            self._goals_reached += 1
            taken = {(int(goal.x), int(goal.y)) for goal in self._goals}
            elsewhere = [cell for cell in free_cells(self.walls) if cell not in taken]
            self._pose = _draw_start(self.walls, elsewhere, self.np_random)
        return self._observe(), float(reached), False, False, self._info(respawned=reached)

    def preview(self, pose: Pose, action: int | np.integer) -> Pose:
        """Where an action leads from a pose in this maze, goals aside; nothing is changed."""
        move = self._moves[self.action_vocabulary.check(action)]
        return move_camera(self.walls, pose, move, self.turn_degrees)

    def render(self) -> np.ndarray | None:
        """The current view in render mode "rgb_array", else None."""
        return self._observe() if self.render_mode == "rgb_array" else None

    def policy(self, name: str, rng: np.random.Generator) -> Callable[[], int]:
        """A policy: each call looks at the state of this environment and returns an action's index.

        - `explore`: tours as below, with pauses, steps back and aside, bumps into walls, spins and random actions
          in between; contains every action. In preset dmlab it is the policy that TECO's data were collected
          with: the first 20 frames spin left, then plain tours.
        - `tour`: walks the shortest way to the farthest cell that was not visited yet, again and again.
        - `revisit`: goes out along a tour and comes back to the very pose that it left, turned around or walking
          backwards, looks around and aside, and goes on somewhere else: what was seen is seen again.

        A policy goes on through resets, and finds its way if others act in between.

        Raises:
            ValueError: no policy of this name.
        """
        return make_maze_policy(self, name, rng)

    @property
    def scene(self) -> Scene:
        """What can be seen, walls included; ValueError before the first reset."""
        if self._scene is None:
            raise ValueError("there is no maze before the first reset(); call reset() first")
        return self._scene

    @property
    def walls(self) -> np.ndarray:
        """(grid_size, grid_size) bool, indexed [x, y]; another array after each reset."""
        return self.scene.walls

    @property
    def pose(self) -> Pose:
        """Where the camera is."""
        return self._pose

    @property
    def cell(self) -> Cell:
        """The cell that the camera is in."""
        return self._pose.cell

    @property
    def goals(self) -> list[Cell]:
        """The cells of the goals."""
        return [(int(goal.x), int(goal.y)) for goal in self._goals]

    def _observe(self) -> np.ndarray:
        return draw(self.scene, *self._pose, self.size)

    def _info(self, *, respawned: bool = False) -> dict[str, Any]:
        return {
            "position": np.array(self._pose[:2]),
            "heading": self._pose.heading,
            "goals_reached": self._goals_reached,
            "respawned": respawned,
        }


def _draw_start(walls: np.ndarray, cells: list[Cell], rng: np.random.Generator) -> Pose:
    """The middle of one of the cells, looking along a free direction."""
    cell = cells[int(rng.integers(len(cells)))]
    free = free_neighbours(walls, cell)
    return Pose(*middle(cell), 90.0 * free[int(rng.integers(len(free)))])


def _one_of(name: str, value: Any, choices: Any) -> Any:
    """The value, or ValueError if it is none of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
