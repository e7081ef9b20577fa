"""What a recipe says: which data, how large a model, how long, and what its card tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from farworld.envs.environments import resolve_env_id
from farworld.envs.recorder import Recording
from farworld.train.config import preset as preset_of

FEW_STEPS = 8  # of the finest step size that the last stage tells the model


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a world is made. Numbers are those at scale 1.

    Attributes:
        name: of the world.
        env: what `farworld record --env` takes.
        env_args: what it is made with.
        size: height and width of the frames, pixels.
        policies: the share of the episodes that each policy plays, and in `why` the reasons.
        frames: of an episode.
        episodes: of a round; each round has its own seed, and so other worlds and walks.
        seed: of the first round; round k has seed + k - 1.
        held_out_seed: of the episodes that nothing is trained on.
        held_out_episodes: of these, played by the same policies.
        held_out_frames: of such an episode.
        preset: sizes of model and training.
        settings: of all stages, as `--set` takes them.
        few_step_settings: further ones, of the last stage.
        autoencoder_steps, world_steps, few_step_steps: of the stages; the last one's are those of a round.
        intro: for the card, what is seen and done in this world.
        why: for the card, why the data are as they are.
        limits: for the card, what the world cannot do.
        rights: for the card, whose art is in the frames.
        licences: of that art, files in `farworld.assets` that go into the world.
    """

    name: str
    env: str
    env_args: Mapping[str, Any] = field(default_factory=dict)
    size: int
    policies: Mapping[str, float]
    frames: int = 300
    episodes: int
    seed: int = 1
    held_out_seed: int = 777_777
    held_out_episodes: int = 32
    held_out_frames: int = 100
    preset: str
    settings: tuple[str, ...] = ()
    few_step_settings: tuple[str, ...] = ()
    autoencoder_steps: int
    world_steps: int
    few_step_steps: int
    intro: str
    why: str
    limits: str
    rights: str
    licences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        preset_of(self.preset, [*self.settings, *self.few_step_settings])

    def recording(self, *, seed: int, frames: int) -> Recording:
        """What is recorded with a seed.

        Raises:
            ImportError: the environment's engine is not installed; the message has the command.
        """
        return Recording(
            env_id=resolve_env_id(self.env),
            env_args=self.env_args,
            size=self.size,
            policy=",".join(f"{name}={share}" for name, share in self.policies.items()),
            seed=seed,
            num_frames=frames,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """How much of a recipe, and what else than the recipe says; the same in every sitting of a run.

    Attributes:
        recipe: its name.
        scale: of episodes and steps, and of nothing else.
        preset: another one than the recipe's.
        settings: further ones of all stages; the last word.
        init: a world to begin with instead of an autoencoder and a world from scratch.
    """

    recipe: str
    scale: float = 1.0
    preset: str | None = None
    settings: tuple[str, ...] = ()
    init: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", tuple(self.settings))
        if not 0 < self.scale <= 1000:
            raise ValueError(f"--scale must be above 0 and at most 1000, got {self.scale}")

    def scaled(self, number: int, least: int = 1) -> int:
        """A number of episodes or steps at this scale."""
        return max(least, round(number * self.scale))
