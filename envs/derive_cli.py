"""`farworld data merge|split|filter|pack|push|pull`: datasets out of datasets, and to and from the hub."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from farworld.console import print_json, progress_bar, stdout_to_stderr
from farworld.dataset import Criteria, Dataset, Derived, derive

Directory = Annotated[Path, Parameter(help="The dataset's folder.")]
Out = Annotated[Path, Parameter(help="The new dataset's folder, which must not be there yet.")]
Json = Annotated[bool, Parameter(negative=(), help="Print one JSON object on stdout.")]
Copy = Annotated[bool, Parameter(negative=(), help="Copy files instead of sharing them by hard links.")]
ShardMegabytes = Annotated[float, Parameter(help="Size of a shard at most, in megabytes.")]

DEFAULT_SHARD_MEGABYTES = derive.SHARD_BYTES / (1 << 20)


def _report(result: Derived, json: bool, **more: Any) -> None:
    if json:
        print_json({**more, **_row(result)})
    else:
        print(_sentence(result))


def _row(result: Derived) -> dict[str, Any]:
    values = asdict(result)
    return {"out": values.pop("directory"), **values}


def _sentence(result: Derived) -> str:
    text = f"{result.episodes} episodes, {result.frames} frames -> {result.directory}"
    if result.copies:
        text += f"; {result.copies} left out, which are in it already"
    if result.referred:
        text += (
            f"; {result.referred} files are symbolic links (there are no hard links between these places): "
            "keep what they come from, or use --copy"
        )
    return text


def merge(
    *directories: Annotated[Path, Parameter(help="The datasets' folders, and last the new one.")],
    json: Json = False,
    copy: Copy = False,
) -> None:
    """Put datasets together without copying: farworld data merge A B ... OUT.

    OUT shares the files of the others, and stays whole when they are deleted or moved. An episode that several of them
    have is taken once; numbers that are taken already go behind the others.
    """
    if len(directories) < 2:
        raise ValueError(f"expected one or more datasets and the new folder, got {len(directories)} folders")
    *parts, out = directories
    with stdout_to_stderr() if json else contextlib.nullcontext():
        result = derive.merge(parts, out, copy=copy)
    _report(result, json, data=parts)


def split(
    directory: Directory,
    out_a: Annotated[Path, Parameter(help="The new folder of the first part.")],
    out_b: Annotated[Path, Parameter(help="The new folder of the rest.")],
    /,
    *,
    fraction: Annotated[float | None, Parameter(help="Of the episodes, for the first part.")] = None,
    episodes: Annotated[int | None, Parameter(help="How many episodes for the first part.")] = None,
    seed: Annotated[int, Parameter(help="Same seed, same parts.")] = 0,
    json: Json = False,
    copy: Copy = False,
) -> None:
    """Divide a dataset into two, such as for training and for judging, without copying. Episodes keep their numbers."""
    with stdout_to_stderr() if json else contextlib.nullcontext():
        dataset = Dataset(directory)
        parts = derive.split_positions(dataset, fraction=fraction, episodes=episodes, seed=seed)
        derive.check_new(out_b)  # before the first part is made
        if out_a.resolve() == out_b.resolve():
            raise ValueError(f"the two parts need two folders, got {out_a} twice")
        results = [
            derive.select(dataset, positions, out, what="split", facts={"split_seed": seed}, copy=copy)
            for positions, out in zip(parts, (out_a, out_b), strict=True)
        ]
    if json:
        print_json({"data": directory, "seed": seed, "parts": [_row(result) for result in results]})
    else:
        print("\n".join(_sentence(result) for result in results))


def filter_(
    directory: Directory,
    out: Out,
    /,
    *,
    policy: Annotated[
        list[str] | None, Parameter(negative=(), help="Chosen by this; again for one of several.")
    ] = None,
    source: Annotated[
        list[str] | None, Parameter(negative=(), help="Whose source has this in it; again for one of several.")
    ] = None,
    action: Annotated[
        list[str] | None, Parameter(negative=(), help="In which this is done; again for all of several.")
    ] = None,
    min_frames: Annotated[int, Parameter(help="This long or longer.")] = 0,
    max_frames: Annotated[int | None, Parameter(help="This long or shorter.")] = None,
    min_reward: Annotated[float | None, Parameter(help="With this sum of rewards or more.")] = None,
    terminated: Annotated[bool | None, Parameter(help="Ended by the environment, or not.")] = None,
    json: Json = False,
    copy: Copy = False,
) -> None:
    """Make a dataset of those episodes that meet all conditions, without copying. Episodes keep their numbers."""
    criteria = Criteria(
        policies=tuple(policy or ()),
        sources=tuple(source or ()),
        actions=tuple(action or ()),
        min_frames=min_frames,
        max_frames=max_frames,
        min_reward=min_reward,
        terminated=terminated,
    )
    with stdout_to_stderr() if json else contextlib.nullcontext():
        dataset = Dataset(directory)
        chosen = [i for i in range(len(dataset)) if criteria.matches(dataset, i)]
        wanted = {key: value for key, value in asdict(criteria).items() if value not in ((), None, 0)}
        result = derive.select(dataset, chosen, out, what="filter", facts={"criteria": wanted}, copy=copy)
    _report(result, json, data=directory, left_out=len(dataset) - len(chosen))


def pack(
    directory: Directory,
    out: Out,
    /,
    *,
    shard_mb: ShardMegabytes = DEFAULT_SHARD_MEGABYTES,
    json: Json = False,
) -> None:
    """Copy a dataset into tar shards in WebDataset naming, with an index: few files, for the hub and for streaming."""
    with stdout_to_stderr() if json else contextlib.nullcontext():
        dataset = Dataset(directory)
        with progress_bar("packing", len(dataset), unit="episodes") as advance:
            result = derive.pack(directory, out, shard_bytes=round(shard_mb * (1 << 20)), on_episode=advance)
        shards = Dataset(out).shards
    num_bytes = sum(shard.num_bytes for shard in shards)
    if json:
        print_json({"data": directory, **_row(result), "shards": len(shards), "bytes": num_bytes})
    else:
        print(f"{_sentence(result)} ({len(shards)} shards, {num_bytes / (1 << 20):.1f} MB)")


def push(
    directory: Directory,
    repository: Annotated[str, Parameter(help="Of the hub: owner/name.")],
    /,
    *,
    private: Annotated[bool, Parameter(negative=(), help="If it is new, show it to nobody else.")] = False,
    licence: Annotated[str | None, Parameter(help="As the hub calls it, such as cc-by-4.0.")] = None,
    shard_mb: ShardMegabytes = DEFAULT_SHARD_MEGABYTES,
    json: Json = False,
) -> None:
    """Upload a dataset to the Hugging Face hub with a dataset card, packed into shards if it is not."""
    from farworld.dataset import hub

    with stdout_to_stderr() if json else contextlib.nullcontext():
        with progress_bar("packing", None, unit="episodes") as advance:
            result = hub.push(
                directory,
                repository,
                private=private,
                licence=licence,
                shard_bytes=round(shard_mb * (1 << 20)),
                on_episode=advance,
            )
    if json:
        print_json(
            {
                "data": directory,
                "repository": result.repository,
                "url": result.url,
                "episodes": result.episodes,
                "files": result.files,
                "bytes": result.num_bytes,
            }
        )
    else:
        size = result.num_bytes / (1 << 20)
        print(f"{result.episodes} episodes, {result.files} files, {size:.1f} MB -> {result.url}")


def pull(
    repository: Annotated[str, Parameter(help="Of the hub: owner/name, or owner/name@revision.")],
    out: Out,
    /,
    *,
    json: Json = False,
) -> None:
    """Download a dataset from the Hugging Face hub; an interrupted pull goes on where it was."""
    from farworld.dataset import hub

    with stdout_to_stderr() if json else contextlib.nullcontext():
        dataset = hub.pull(repository, out)
        frames = sum(dataset.num_frames(i) for i in range(len(dataset)))
    if json:
        print_json({"repository": repository, "out": out, "episodes": len(dataset), "frames": frames})
    else:
        print(f"{len(dataset)} episodes, {frames} frames -> {out}")
