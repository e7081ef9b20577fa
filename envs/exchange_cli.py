"""`farworld data import` and `farworld data export`: Minari and LeRobot datasets."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from farworld.console import print_json, progress_bar, stdout_to_stderr
from farworld.dataset import Dataset
from farworld.envs.exchange import FormatName, ImportOptions, ImportResult, import_source, open_source
from farworld.envs.frames import Fit
from farworld.envs.lerobot_export import ImageKind, LayoutName, export_lerobot
from farworld.envs.minari_export import export_minari

Json = Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")]


def add_commands(app: App) -> None:
    """Add both commands to `farworld data`."""
    app.command(import_command, name="import")
    app.command(export_command, name="export")


def import_command(
    source: Annotated[Path, Parameter(help="The dataset's folder, or its id where Minari or LeRobot keeps it.")],
    directory: Annotated[Path, Parameter(help="The dataset's folder; one that is there is extended.")],
    /,
    *,
    format: Annotated[FormatName | None, Parameter(help="What it is; found out from its files without this.")] = None,
    obs_key: Annotated[str, Parameter(help="Which picture of an observation, or camera, if there are several.")] = "",
    size: Annotated[int | None, Parameter(help="Frame height and width; without it the pictures' own.")] = None,
    fit: Annotated[Fit, Parameter(help="With --size: cut the centre out, or squeeze all in.")] = "crop",
    fps: Annotated[float | None, Parameter(help="Frames per second, if the dataset does not say, or wrongly.")] = None,
    actions: Annotated[
        Path | None,
        Parameter(help="A TOML file that names the actions to tell apart; continuous actions need one."),
    ] = None,
    env: Annotated[str, Parameter(help="What world it is of; parts of one data set go together under one name.")] = "",
    json: Json = False,
) -> None:
    """Import a Minari or LeRobot dataset; what the dataset has already is passed over.

    Actions become those of the vocabulary that they are nearest to, and are kept as they are beside it.
    """
    with stdout_to_stderr() if json else contextlib.nullcontext():
        options = ImportOptions(obs_key=obs_key, size=size, fit=fit, frames_per_second=fps, actions=actions, env_id=env)
        opened = open_source(source, format, options)
        with progress_bar(f"importing {opened.head.name}", opened.head.num_episodes, unit="episodes") as advance:
            result = import_source(opened, directory, options, on_episode=advance)
    if json:
        print_json({"data": directory, "source": source, "name": opened.head.name, **dataclasses.asdict(result)})
        return
    print(f"{result.episodes} episodes, {result.frames} frames added, {result.known} known -> {directory}")
    for remark in _remarks(result):
        print(f"  {remark}")


def _remarks(result: ImportResult) -> list[str]:
    """What a person should know of an import."""
    remarks = []
    if result.missing:
        remarks.append(f"{result.missing} episodes that the source names are not there")
    if result.lossy:
        remarks.append(f"the source's frames are {result.lossy}, which loses details; they are stored as decoded")
    if result.approximated:
        remarks.append(f"{result.approximated} actions were not in the vocabulary and became the nearest that is")
    if result.assumed_rate:
        remarks.append(f"the source does not say its speed; {result.frames_per_second:g} frames/s assumed, see --fps")
    if result.left_out:
        remarks.append(f"left out: {', '.join(result.left_out)}")
    return remarks


def export_command(
    directory: Annotated[Path, Parameter(help="The dataset's folder.")],
    out: Annotated[Path, Parameter(help="A new folder, or one that an export of this dataset began.")],
    /,
    *,
    format: Annotated[FormatName, Parameter(help="What it becomes.")],
    images: Annotated[
        ImageKind,
        Parameter(
            help="For LeRobot: PNG or lossless H.264 keep every pixel; mp4 is smaller, plays anywhere, and loses."
        ),
    ] = "png",
    layout: Annotated[LayoutName, Parameter(help="For LeRobot: the version of its layout.")] = "v3.0",
    skip_bad: Annotated[bool, Parameter(negative=(), help="Leave damaged and foreign files out.")] = False,
    json: Json = False,
) -> None:
    """Export a dataset for Minari or LeRobot; what was exported before is passed over.

    For Minari, raw uint8 frames (0.5.4 or later reads them). For LeRobot, the last frame of an episode repeats the
    action before it, since each of its rows must have one.
    """
    with stdout_to_stderr() if json else contextlib.nullcontext():
        dataset = Dataset(directory, skip_bad=skip_bad)
        if directory.resolve() == out.resolve() or directory.resolve() in out.resolve().parents:
            raise ValueError(f"{out} would lie in the dataset, as a foreign file; give a place outside {directory}")
        with progress_bar(f"exporting for {format}", len(dataset), unit="episodes") as advance:
            if format == "minari":
                result = export_minari(dataset, out, on_episode=advance)
            else:
                result = export_lerobot(dataset, out, images=images, layout=layout, on_episode=advance)
    if json:
        print_json({"data": directory, "out": out, "format": format, **dataclasses.asdict(result)})
    else:
        print(f"{result.episodes} episodes, {result.frames} frames exported, {result.known} known -> {out}")
