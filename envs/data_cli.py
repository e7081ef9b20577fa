"""`farworld data`: look at, measure, check, show and import recorded datasets; derive_cli has what makes new ones."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter

from farworld.console import print_json, progress_bar, stdout_to_stderr
from farworld.dataset import Dataset, episode_name
from farworld.dataset.stats import measure, summarize
from farworld.envs import derive_cli, exchange_cli
from farworld.envs.derive_cli import Directory, Json
from farworld.envs.frames import Fit
from farworld.envs.teco import TecoName, find_files, import_teco
from farworld.envs.videos import VideoOptions, find_videos, import_videos
from farworld.video import VideoWriter, contact_sheet, write_png

SHEET_FRAMES = 32  # in a contact sheet, unless told
SHEET_COLUMNS = 8
VIDEO_HEIGHT = 256  # small frames are enlarged to about this, since players blur them

data = App(name="data", help="Look at, check, combine, share and import datasets.")
for _name in ("merge", "split", "filter", "pack", "push", "pull"):
    data.command(getattr(derive_cli, _name.replace("filter", "filter_")), name=_name)
exchange_cli.add_commands(data)


@data.command
def info(directory: Directory, /, *, json: Json = False) -> None:
    """Print what a dataset holds; damaged and foreign files are counted and left out."""
    with stdout_to_stderr() if json else contextlib.nullcontext():
        summary = summarize(Dataset(directory, skip_bad=True))
    if json:
        print_json(summary)
        return
    _print_summary(summary)


def _print_summary(summary: dict[str, Any]) -> None:
    for key in ("env", "env_version", "episodes", "frames", "frames_per_second", "action_timing", "seed"):
        print(f"{key:<18} {summary[key]}")
    print(f"{'frame size':<18} {summary['height']} x {summary['width']}")
    place = f"{summary['shards']} shards" if summary["packed"] else "one file an episode"
    print(f"{'stored':<18} {summary['bytes'] / (1 << 20):.1f} MB, {place}")
    for name, row in summary["policies"].items():
        print(f"policy {name or 'not said':<11} {row['episodes']} episodes, {row['frames']} frames")
    total = max(1, sum(action["count"] for action in summary["actions"]))
    for index, action in enumerate(summary["actions"]):
        keys = " + ".join(action["keys"]) or "no key"
        share = action["count"] / total
        print(f"action {index:<11} {action['name']:<16} {keys:<16} {action['count']:>10} {share:>7.1%}")
    print(f"{'bad files':<18} {summary['bad']}")
    for row in summary["bad_files"]:
        print(f"  {row['path']}: {row['reason']}")


@data.command
def stats(directory: Directory, /, *, json: Json = False) -> None:
    """Measure a dataset: lengths, pixels, motion, actions, rewards; every frame is read."""
    with stdout_to_stderr() if json else contextlib.nullcontext():
        dataset = Dataset(directory, skip_bad=True)
        with progress_bar("measuring", len(dataset), unit="episodes") as advance:
            result = measure(dataset, on_episode=advance)
    if json:
        print_json(result)
        return
    _print_summary(result)
    changes = result["frame_difference"]
    rows = {
        "frames an episode": _spread(result["lengths"]),
        "pixel mean (RGB)": ", ".join(f"{value:.1f}" for value in result["pixels"]["mean"]),
        "pixel std (RGB)": ", ".join(f"{value:.1f}" for value in result["pixels"]["std"]),
        "frame difference": "-" if changes["mean"] is None else f"{changes['mean']:.2f}",
        **{f"  after {name}": f"{value:.2f}" for name, value in changes["by_action"].items()},
        "reward of a step": _spread(result["rewards"]["steps"]),
        "reward an episode": _spread(result["rewards"]["episodes"]),
        "terminated": result["ends"]["terminated"],
        "truncated": result["ends"]["truncated"],
    }
    for label, value in rows.items():
        print(f"{label:<18} {value}")


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    return f"{values['min']:g} to {values['max']:g}, median {values['median']:g}, mean {values['mean']:g}"


@data.command
def verify(directory: Directory, /, *, json: Json = False) -> None:
    """Read a whole dataset and compare it with its checksums; exit code 1 if anything is damaged."""
    with stdout_to_stderr() if json else contextlib.nullcontext():
        dataset = Dataset(directory, skip_bad=True)
        bad = [{"path": str(path), "reason": reason} for path, reason in dataset.bad]
        with progress_bar("verifying", len(dataset), unit="episodes") as advance:
            for i in range(len(dataset)):
                try:
                    dataset.verify(i)
                except (ValueError, OSError) as error:
                    bad.append({"path": str(dataset.path(i)), "reason": str(error)})
                advance()
    good = len(dataset) + len(dataset.bad) - len(bad)
    if json:
        print_json({"data": directory, "episodes": good, "bad": len(bad), "bad_files": bad})
    else:
        for row in bad:
            print(f"{row['path']}: {row['reason']}")
        print(f"{good} episodes are intact, {len(bad)} files are bad")
    if bad:
        sys.exit(1)


@data.command
def view(
    directory: Directory,
    out: Annotated[Path, Parameter(help="A .png for a contact sheet, or an .mp4.")],
    /,
    *,
    episode: Annotated[int | None, Parameter(help="The episode's number; the first one without it.")] = None,
    frames: Annotated[
        int | None, Parameter(help="Frames, spread over a sheet (32), or from a video's start (all).")
    ] = None,
    all_: Annotated[
        bool, Parameter(name="--all", negative=(), help="One row for each episode, with --frames (8) of each.")
    ] = False,
    json: Json = False,
) -> None:
    """Write an episode as a contact sheet or as a video, or all episodes as one sheet."""
    if out.suffix not in (".png", ".mp4"):
        raise ValueError(f"expected a file name that ends in .png or .mp4, got {out}")
    if all_ and (out.suffix != ".png" or episode is not None):
        raise ValueError(f"--all makes one .png of all episodes, got {out} and --episode {episode}")
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be 1 or more, got {frames}")
    if directory.resolve() in out.resolve().parents:
        raise ValueError(f"{out} would lie in the dataset, as a foreign file; give a place outside {directory}")
    with stdout_to_stderr() if json else contextlib.nullcontext():
        dataset = Dataset(directory, skip_bad=True)
        if all_:
            columns = frames or SHEET_COLUMNS
            _write_strips(out, dataset, columns)
    if all_:
        height, width = dataset.spec.height, dataset.spec.width
        row = {"data": directory, "out": out, "episodes": len(dataset), "frames": columns * len(dataset)}
        if json:
            print_json({**row, "height": height, "width": width})
        else:
            print(f"{len(dataset)} episodes, a row each -> {out}")
        return
    with stdout_to_stderr() if json else contextlib.nullcontext():
        i = _position(dataset, episode)
        pictures = dataset.frames(i)
        if out.suffix == ".png":
            shown = min(len(pictures), frames or SHEET_FRAMES)
            _write_sheet(out, pictures, shown)
        else:
            shown = min(len(pictures), frames or len(pictures))
            _write_video(out, pictures[:shown], dataset.spec.frames_per_second)
    if json:
        height, width = pictures.shape[1:3]
        number = int(dataset.episodes[i].rpartition("-")[2])
        print_json(
            {"data": directory, "out": out, "episode": number, "frames": shown, "height": height, "width": width}
        )
    else:
        print(f"{dataset.episodes[i]} -> {out}")


def _write_strips(out: Path, dataset: Dataset, columns: int) -> None:
    """Write all episodes as one picture: a row for each, of frames evenly spread over it."""
    _position(dataset, None)
    pictures = []
    for i in range(len(dataset)):
        frames = dataset.frames(i)
        pictures += list(frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)])
    write_png(out, contact_sheet(pictures, columns))


def _write_sheet(out: Path, pictures: np.ndarray, count: int) -> None:
    """Write `count` of an episode's pictures, evenly spread, as one."""
    chosen = np.linspace(0, len(pictures) - 1, count).round().astype(int)
    write_png(out, contact_sheet(pictures[chosen], min(SHEET_COLUMNS, count)))


def _write_video(out: Path, pictures: np.ndarray, frames_per_second: float) -> None:
    """Write pictures as a video, enlarged."""
    height, width = pictures.shape[1:3]
    scale = max(1, VIDEO_HEIGHT // height)
    scale += scale % 2 * (height % 2 | width % 2)  # H.264 wants even sides
    with VideoWriter(out, frames_per_second, height, width, scale=scale) as video:
        for picture in pictures:
            video.write(picture)


def _position(dataset: Dataset, number: int | None) -> int:
    """Where the episode of this number comes in the dataset."""
    if not len(dataset):
        raise ValueError(f"{dataset.directory} has no readable episode")
    if number is None:
        return 0
    if episode_name(number) not in dataset.episodes:
        raise ValueError(
            f"{dataset.directory} has no readable episode {number}; "
            f"its {len(dataset)} episodes lie between {dataset.episodes[0]} and {dataset.episodes[-1]}"
        )
    return dataset.episodes.index(episode_name(number))


@data.command(name="import-teco")
def import_teco_command(
    name: Annotated[TecoName, Parameter(help="Which data set.")],
    source: Annotated[Path, Parameter(help="A file of it, or a folder that is searched.")],
    directory: Directory,
    /,
    *,
    json: Json = False,
) -> None:
    """Import the TECO DMLab or Minecraft data; what the dataset has already is passed over."""
    with stdout_to_stderr() if json else contextlib.nullcontext():
        count = len(find_files(name, source))
        with progress_bar(f"importing {name}", count, unit="episodes") as advance:
            result = import_teco(name, source, directory, on_file=advance)
    if json:
        print_json(
            {
                "data": directory,
                "source": source,
                "episodes": result.episodes,
                "frames": result.frames,
                "known": result.known,
            }
        )
    else:
        print(f"{result.episodes} episodes, {result.frames} frames added, {result.known} known -> {directory}")


@data.command(name="import-video")
def import_video_command(
    source: Annotated[Path, Parameter(help="A folder with videos, searched to any depth, or one video.")],
    directory: Annotated[Path, Parameter(help="The dataset's folder; one that is there is extended.")],
    /,
    *,
    size: Annotated[int, Parameter(help="Frame height and width, in pixels.")],
    interval: Annotated[
        int, Parameter(help="Take every so many frames, from the first on. Training can skip frames too, and sees all.")
    ] = 1,
    fit: Annotated[Fit, Parameter(help="Cut the centre out, or squeeze all in.")] = "crop",
    labels: Annotated[
        bool, Parameter(negative=(), help="The folder that a video lies in is its class, as in UCF-101.")
    ] = False,
    env: Annotated[str, Parameter(help="What world it is of; parts of one data set go together under one name.")] = "",
    skip_bad: Annotated[bool, Parameter(negative=(), help="Leave out videos that are no use, and name them.")] = False,
    json: Json = False,
) -> None:
    """Import videos that nobody acts in; what the dataset has already is passed over.

    With --labels every action of an episode is its class: train on it with --set condition=label, or none.
    """
    options = VideoOptions(size=size, interval=interval, fit=fit, labels=labels, env_id=env)

    def on_bad(reason: str) -> None:
        print(f"left out: {reason}", file=sys.stderr)

    with stdout_to_stderr() if json else contextlib.nullcontext():
        with progress_bar("importing videos", len(find_videos(source)), unit="videos") as advance:
            result = import_videos(source, directory, options, on_file=advance, on_bad=on_bad if skip_bad else None)
    if json:
        print_json({"data": directory, "source": source, **dataclasses.asdict(result)})
        return
    bad = f", {result.bad} left out" if result.bad else ""
    print(f"{result.episodes} episodes, {result.frames} frames added, {result.known} known{bad} -> {directory}")
    if result.other_rates:
        print(
            f"  {result.other_rates} of them run at another speed than the first one's {result.frames_per_second:g} "
            "frames/s; frames are stored as they follow each other"
        )
