"""`farworld ckpt`: checkpoints of other projects."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from farworld.console import print_json, stdout_to_stderr

Variant = Literal["far_b", "far_m", "far_l", "far_xl", "far_b_long", "far_m_long"]
CONTEXT_HELP = (
    "Real frames to start from: a TECO file, or a folder with such files (DMLab .npz; Minecraft .mp4 with its .npz). "
    "Without it the starts are recorded in the built-in world that looks like the data."
)

ckpt = App(name="ckpt", help="Convert the official FAR weights into worlds.")


@ckpt.command
def convert(
    source: Annotated[Path, Parameter(help="The transformer, a .pth file with a flat dictionary of tensors.")],
    out: Annotated[Path, Parameter(help="The world's directory, a new one.")],
    /,
    *,
    autoencoder: Annotated[Path, Parameter(help="The DC-AE, likewise; its compression is recognised.")],
    actions: Annotated[Literal["minecraft", "dmlab"], Parameter(help="The TECO data that it was trained on.")],
    variant: Annotated[Variant | None, Parameter(help="Insist on this size; recognised without it.")] = None,
    context: Annotated[Path | None, Parameter(help=CONTEXT_HELP)] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")] = False,
) -> None:
    """Make a world directory of official FAR weights, github.com/showlab/FAR.

    Every tensor is checked by name and shape and kept in float32; nothing is run from the files. The published
    weights need no converting by hand: say --ckpt guyuchao/FAR_Models:minecraft or :dmlab wherever a world is asked
    for.
    """
    with stdout_to_stderr() if json else contextlib.nullcontext():
        from farworld import official_worlds
        from farworld.models.official import variant_of

        world = official_worlds.convert(actions, source, autoencoder, out, variant=variant, context=context)
        config = world.config
        report = {
            "world": out,
            "variant": variant_of(config.model),
            "autoencoder": f"{config.autoencoder.compression}x",
            "parameters": world.num_parameters,
            "frame_size": f"{config.frame_height}x{config.frame_width}",
            "actions": list(config.vocabulary.names),
            "frame_action": config.frame_action,
            "layout": config.layout,
            "steps": config.num_steps,
            "context_frames": config.context_frames,
            "starts": config.training["starts"],
        }
    if json:
        print_json(report)
        return
    for name, value in report.items():
        print(f"{name:<15} {', '.join(value) if isinstance(value, list) else value or 'another size'}")
    print(f"play it: farworld play --ckpt {out}")
