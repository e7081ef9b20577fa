"""Options of a real environment, which `farworld record` and `farworld play --env` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

ACTIONS_HELP = (
    "A vocabulary: a TOML file with one [[actions]] for each action: name, keys (a list; left out for idling) and "
    "action, what the environment takes: a number, a list, or a table whose missing keys idle. Without it the "
    "environment's own, or one is made up: idling, every component alone, and chords for moving."
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """Options of the environment, which `record` and `play` share."""

    env_arg: Annotated[
        tuple[str, ...],
        Parameter(
            help="name=value, passed to the environment when it is made (repeatable); the value is TOML or JSON, else "
            "a text: preset=dmlab, frame_skip=4, obs=[1,2].",
            negative=(),
            show_default=False,
        ),
    ] = ()
    obs_key: Annotated[
        str,
        Parameter(
            help="Which part of a Dict observation holds the pixels; without it the likeliest picture.",
            show_default=False,
        ),
    ] = ""
    render: Annotated[
        bool,
        Parameter(
            negative=(), show_default=False, help="Take the pixels from render(), even if the observation is a picture."
        ),
    ] = False
    fit: Annotated[
        Literal["crop", "stretch"] | None,
        Parameter(
            help="How a frame that is no square becomes one where it is resized: its centre is cut out, or all of it "
            "squeezed in. Without it crop, but stretch for Atari."
        ),
    ] = None
    actions: Annotated[Path | None, Parameter(help=ACTIONS_HELP)] = None

    def settings(self) -> dict[str, Any]:
        """The options as arguments of `EnvSettings`."""
        from farworld.envs.environments import parse_env_args

        return {
            "env_args": parse_env_args(self.env_arg),
            "obs_key": self.obs_key,
            "render": self.render,
            "fit": self.fit,
            "actions": self.actions,
        }

    @property
    def given(self) -> list[str]:
        """The names of the options that were given."""
        default = EnvOptions()
        return [f"--{name.replace('_', '-')}" for name in vars(self) if getattr(self, name) != getattr(default, name)]
