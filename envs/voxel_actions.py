"""The action vocabularies of the voxel world, and how a body moves under each of them."""

from __future__ import annotations

from dataclasses import dataclass

from farworld.actions import Action, ActionVocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What an action does in one step.

    Attributes:
        turn: to the right, in turns.
        tilt: upwards, in tilts.
        ahead: strides ahead.
        aside: strides to the right.
        sprint: the strides are long ones.
        jump: leave the ground.
        dig: remove the block in the middle of the picture.
        place: build there.
        slot: slots that the hot bar moves on by.
    """

    turn: int = 0
    tilt: int = 0
    ahead: int = 0
    aside: int = 0
    sprint: bool = False
    jump: bool = False
    dig: bool = False
    place: bool = False
    slot: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """How a body moves; lengths in blocks, times in steps.

    Attributes:
        stride: walked in a step.
        sprint: run in a step.
        jump_speed: upwards, at the start of a jump.
        gravity: speed lost in a step.
        drag: share of the vertical speed that is kept in a step.
        max_fall: speed; below one block, so that no floor is skipped.
        swim_speed: upwards and downwards.
        swim_depth: how far below the surface the feet of a swimmer hang.
        leave_speed: upwards, of a swimmer who jumps against a bank; 0 takes a bank as a step in walking.
        part: longest piece of a stride that is tried at once, and so the widest gap left before a wall.
        climbs: a step one block up is taken in walking.
        glides: the eye follows such a step in several frames.
        leaps: a jump goes ahead until it lands; otherwise the air is steered in like the ground.
        dives: a swimmer who walks ahead and looks down goes down.
    """

    stride: float
    sprint: float = 0.0
    jump_speed: float
    gravity: float
    drag: float = 1.0
    max_fall: float = 0.9
    swim_speed: float
    swim_depth: float
    leave_speed: float = 0.0
    part: float
    climbs: bool = True
    glides: bool = False
    leaps: bool = False
    dives: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """An action vocabulary and what it means.

    Attributes:
        vocabulary: names and keys.
        effects: what each action does, in the order of the vocabulary.
        motion: how the body moves.
        headings: directions to face, one turn apart.
        tilts: that would make a full circle.
        max_tilts: up or down from level.
        frames_per_second: steps a second.
        hot_bar: several blocks can be placed, and a hand shows the one that is next.
    """

    vocabulary: ActionVocabulary
    effects: tuple[Effect, ...]
    motion: Motion
    headings: int
    tilts: int = 24
    max_tilts: int
    frames_per_second: float
    hot_bar: bool = False


def _control(rows: tuple[tuple[str, tuple[str, ...], Effect], ...], **fields) -> Control:
    """A control from rows of name, keys and effect."""
    vocabulary = ActionVocabulary(tuple(Action(name=name, keys=keys) for name, keys, _ in rows))
    return Control(vocabulary=vocabulary, effects=tuple(effect for *_, effect in rows), **fields)


FULL = _control(
    (
        ("noop", (), Effect()),
        ("forward", ("w",), Effect(ahead=1)),
        ("backward", ("s",), Effect(ahead=-1)),
        ("strafe_left", ("a",), Effect(aside=-1)),
        ("strafe_right", ("d",), Effect(aside=1)),
        ("turn_left", ("left",), Effect(turn=-1)),
        ("turn_right", ("right",), Effect(turn=1)),
        ("forward_left", ("w", "left"), Effect(ahead=1, turn=-1)),
        ("forward_right", ("w", "right"), Effect(ahead=1, turn=1)),
        ("sprint", ("w", "left shift"), Effect(ahead=1, sprint=True)),
        ("sprint_left", ("w", "left shift", "left"), Effect(ahead=1, sprint=True, turn=-1)),
        ("sprint_right", ("w", "left shift", "right"), Effect(ahead=1, sprint=True, turn=1)),
        ("look_up", ("up",), Effect(tilt=1)),
        ("look_down", ("down",), Effect(tilt=-1)),
        ("jump", ("space",), Effect(jump=True)),
        ("forward_jump", ("w", "space"), Effect(ahead=1, jump=True)),
        ("sprint_jump", ("w", "left shift", "space"), Effect(ahead=1, sprint=True, jump=True)),
        ("dig", ("e",), Effect(dig=True)),
        ("place", ("f",), Effect(place=True)),
        ("previous_block", ("z",), Effect(slot=-1)),
        ("next_block", ("x",), Effect(slot=1)),
    ),
    motion=Motion(
        stride=0.43, sprint=0.56, jump_speed=0.62, gravity=0.22, swim_speed=0.25, swim_depth=1.3, part=0.15,
        glides=True, dives=True,
    ),
    headings=24,
    max_tilts=5,
    frames_per_second=10.0,
    hot_bar=True,
)  # fmt: skip

BASIC = _control(
    (
        ("noop", (), Effect()),
        ("forward", ("up",), Effect(ahead=1)),
        ("backward", ("down",), Effect(ahead=-1)),
        ("turn_left", ("left",), Effect(turn=-1)),
        ("turn_right", ("right",), Effect(turn=1)),
        ("forward_left", ("up", "left"), Effect(ahead=1, turn=-1)),
        ("forward_right", ("up", "right"), Effect(ahead=1, turn=1)),
        ("look_up", ("w",), Effect(tilt=1)),
        ("look_down", ("s",), Effect(tilt=-1)),
        ("jump", ("space",), Effect(ahead=1, jump=True)),
        ("dig", ("d",), Effect(dig=True)),
        ("place", ("a",), Effect(place=True)),
    ),
    motion=Motion(
        stride=0.35, jump_speed=0.62, gravity=0.22, swim_speed=0.25, swim_depth=1.1, part=1.0, leaps=True
    ),
    headings=24,
    max_tilts=3,
    frames_per_second=10.0,
)  # fmt: skip

# Speeds are those of Minecraft's own 20 ticks a second.
TECO = _control(
    (
        ("forward", ("up",), Effect(ahead=1, jump=True)),
        ("yaw_left", ("left",), Effect(turn=-1, jump=True)),
        ("yaw_right", ("right",), Effect(turn=1, jump=True)),
    ),
    motion=Motion(
        stride=0.216, jump_speed=0.42, gravity=0.08, drag=0.98, swim_speed=0.1, swim_depth=1.3, leave_speed=0.3,
        part=0.11, climbs=False,
    ),
    headings=18,
    max_tilts=0,
    frames_per_second=20.0,
)  # fmt: skip

CONTROLS = {"full": FULL, "basic": BASIC, "teco": TECO}
