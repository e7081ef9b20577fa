"""The model card of a world that a recipe made."""

from __future__ import annotations

import shlex
from typing import Any

from farworld.train.recipes.recipe import Order, Recipe
from farworld.world_model import WorldConfig

FRONT_MATTER = """---
library_name: farworld
license: apache-2.0
tags: [world-model, action-conditioned-video, autoregressive, flow-matching]
---
"""


def write_card(
    recipe: Recipe, order: Order, config: WorldConfig, trainings: dict[str, dict[str, Any]], evaluation: dict[str, Any]
) -> str:
    """A Hugging Face model card.

    Args:
        recipe: for its texts.
        order: how much of it was done.
        config: of the world.
        trainings: what each part of the run says of its training, in order, by its name.
        evaluation: as `evaluation.json` has it.
    """
    policies = ", ".join(f"{share:.0%} {name}" for name, share in recipe.policies.items())
    held_out = evaluation["one_step"]["1_steps"]
    return f"""{FRONT_MATTER}# {recipe.name}

{recipe.intro}

A FAR-Long world model (frame-autoregressive flow matching, arXiv:2503.19325) of
`{next(iter(trainings.values()))["data"]["env"]}`:
{config.frame_height}×{config.frame_width} pixels at {config.frames_per_second:g} frames/s.

Play it: `farworld play --ckpt PATH`. Actions: {", ".join(config.vocabulary.names)}.

## Training

- Made by `{command(order, evaluation["rounds"])}`; all settings are in `config.json`.
- Data of each round: {policies} of the episodes, up to {recipe.frames} frames each: {recipe.why}.
{"".join(_training_line(name, training) for name, training in trainings.items())}
## Quality

One step from true context on {held_out["episodes"]} episodes of seed {evaluation["seed"]}, {held_out["frames"]} frames
that nothing was trained on; measured on {evaluation["hardware"]}.

| frames that differ from the one before | PSNR | SSIM |
|---|---|---|
{"".join(_score_row(name, scores) for name, scores in evaluation["one_step"].items())}\
| copying the last frame | {_number(held_out["copy_last_psnr"])} dB | {_number(held_out["copy_last_ssim"], 3)} |

Frames that do not change: {_number(held_out["idle_psnr"])} dB.

{recipe.limits}

## Rights

{recipe.rights}
"""


def command(order: Order, rounds: int) -> str:
    """The command that makes the world."""
    words = ["farworld", "recipe", order.recipe, "--out", "RUN", "--scale", f"{order.scale:g}"]
    words += ["--rounds", str(rounds)] if rounds > 1 else []
    words += ["--preset", order.preset] if order.preset else []
    words += ["--init", order.init] if order.init else []
    words += ["--set", *order.settings] if order.settings else []
    return shlex.join(words)


def _training_line(name: str, training: dict[str, Any]) -> str:
    data, autoencoder, world = training["data"], training["autoencoder"], training["world"]
    parts = [f"world {world['steps']} steps, {world['seconds'] / 60:.0f} minutes"]
    if autoencoder["seconds"]:
        parts.insert(0, f"autoencoder {autoencoder['steps']} steps, {autoencoder['seconds'] / 60:.0f} minutes")
    return (
        f"- {name}: {data['episodes']} episodes, {data['frames']:,} frames of seed {data['seed']}; {'; '.join(parts)}; "
        f"{training['hardware']}; torch {training['torch']}.\n"
    )


def _score_row(name: str, scores: dict[str, Any]) -> str:
    label = {"shuffled_actions": "the actions shuffled"}.get(name, f"{scores['steps']} denoising steps a frame")
    return f"| {label} | {_number(scores['psnr'])} dB | {_number(scores['ssim'], 3)} |\n"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
