"""Datasets for Minari, written without Minari in the layout of its HDF5 files; see `minari_import`.

Frames are raw arrays, which Minari reads from its release 0.5.4 on, behind HDF5's own lossless compression.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from farworld import __version__
from farworld.dataset import CHUNK_FRAMES, Dataset, DatasetSpec, Episode
from farworld.dataset.writer import write_atomically
from farworld.envs.environments import resolve_env_id
from farworld.envs.exchange import ExportResult, already_exported, episode_digest, space_of
from farworld.envs.minari_import import (
    DIGEST,
    INDICES,
    MAIN_FILE,
    METADATA_FILE,
    NUMBER,
    POLICY,
    SOURCE,
    datasets_root,
    import_h5py,
)
from farworld.lock import LOCK_FILE, lock_folder

LAYOUT_VERSION = "0.5.4"  # the first Minari that reads raw pictures; older ones say that they cannot

_PARTS_FOLDER = ".parts"  # episodes that are exported and not yet in the main file
_DATASET_ID = re.compile(r"([-_\w][-_\w/]*[-_\w]+/)?[-_\w]+?-v\d+")


def dataset_id(out: str | os.PathLike) -> str:
    """The name by which Minari will know an exported folder: its place in Minari's own, else the folder's name.

    Minari wants a version at the end; a folder without one becomes the first.
    """
    place, root = Path(out).resolve(), datasets_root().resolve()
    name = place.relative_to(root).as_posix() if place.is_relative_to(root) else place.name
    if _DATASET_ID.fullmatch(name):
        return name
    return re.sub(r"[^-_/\w]+", "-", name).strip("-/") + "-v0"


def export_minari(
    dataset: Dataset, out: str | os.PathLike, *, on_episode: Callable[[], None] = lambda: None
) -> ExportResult:
    """Write a dataset as one of Minari's; episodes that are there already are passed over.

    Each episode is first a file of its own, whole or not there; they are put together at the end, which copies
    compressed data and is quick. Whatever stops an export, it goes on when run again.

    Args:
        dataset: ours.
        out: the folder, into which `data/` goes; Minari finds it by its name where MINARI_DATASETS_PATH is the folder
            that it lies in.
        on_episode: called after each episode.

    Raises:
        ValueError: the folder holds something else.
        ImportError: h5py is not installed.
    """
    h5py = import_h5py()
    out = Path(out)
    data, parts = out / "data", out / _PARTS_FOLDER
    _check_folder(out)
    for folder in (data, parts):
        folder.mkdir(parents=True, exist_ok=True)
    frames = []
    with lock_folder(out):
        known = _exported(h5py, data / MAIN_FILE)
        for path in parts.iterdir():
            if path.suffix == ".h5":
                known |= _exported(h5py, path)
            else:  # of an export that was killed
                path.unlink()
        count = 0
        for i in range(len(dataset)):
            if already_exported(known, dataset, i, out):
                count += 1
            else:
                frames.append(_write_part(h5py, parts, dataset, i))
            on_episode()
        _put_together(h5py, data, parts)
        _write_metadata(h5py, data, dataset.spec, dataset_id(out))
        shutil.rmtree(parts)
    return ExportResult(episodes=len(frames), frames=sum(frames), known=count)


def _check_folder(out: Path) -> None:
    """Raise ValueError unless the folder is new, or holds an export of ours."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the export")
    names = {path.name for path in out.iterdir()} - {LOCK_FILE, _PARTS_FOLDER} if out.is_dir() else set()
    metadata = out / "data" / METADATA_FILE
    if metadata.is_file() and "farworld" in json.loads(metadata.read_text(encoding="utf-8")):
        return
    if names - {"data"} or metadata.is_file() or names and not (out / _PARTS_FOLDER).is_dir():
        raise ValueError(f"{out} holds {sorted(names)[0]} and is no export of a farworld dataset; give a new folder")


def _exported(h5py: Any, path: Path) -> dict[int, str]:
    """The digests of the episodes in a file, by their numbers in the dataset that they were exported from."""
    if not path.is_file():
        return {}
    with h5py.File(path, "r") as file:
        return {int(group.attrs[NUMBER]): str(group.attrs[DIGEST]) for group in file.values()}


def _write_part(h5py: Any, parts: Path, dataset: Dataset, i: int) -> int:
    """Write the i-th episode into a file of its own; its number of frames."""
    episode = dataset.episode(i)
    path = parts / f"{episode.index:06d}.h5"
    temporary = path.with_suffix(".tmp")
    rewards = episode.rewards
    count = len(rewards)
    ends = np.zeros((2, count), np.bool_)
    ends[:, -1:] = [[episode.terminated], [episode.truncated]]
    with h5py.File(temporary, "w") as file:
        group = file.create_group("episode")
        group.attrs.update({"total_steps": count, "seed": episode.seed, NUMBER: episode.index})
        group.attrs.update({DIGEST: episode_digest(dataset, i), SOURCE: episode.source, POLICY: episode.policy})
        if count:
            statistics = {name: getattr(rewards, name)() for name in ("sum", "mean", "std", "max", "min")}
            group.attrs.update({f"rewards_{name}": float(value) for name, value in statistics.items()})
        chunk = (min(CHUNK_FRAMES, len(episode.frames)), *episode.frames.shape[1:])
        group.create_dataset("observations", data=episode.frames, chunks=chunk, compression="gzip", compression_opts=1)
        for name, values in _own_actions(dataset.spec, episode):
            group.create_dataset(name, data=values)
        for name, values in (("rewards", rewards), ("terminations", ends[0]), ("truncations", ends[1])):
            group.create_dataset(name, data=values)
        group.create_group("infos")
    _flush(temporary)
    os.replace(temporary, path)
    return len(episode.frames)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _own_actions(spec: DatasetSpec, episode: Episode) -> Iterator[tuple[str, np.ndarray]]:
    """What Minari calls actions: the environment's own; and beside them the vocabulary's indices, if they differ."""
    if not episode.env_actions:
        yield "actions", episode.actions + spec.action_space.get("start", 0)
        return
    yield INDICES, episode.actions
    for path, key in _minari_paths(spec.action_space):
        yield f"actions{path}", episode.env_actions[key]


def _minari_paths(space: Mapping[str, Any], path: str = "", key: str = "") -> Iterator[tuple[str, str]]:
    """Where Minari keeps each part of an action, and what the part is called by us."""
    if "spaces" not in space:
        yield path, key or "action"
        return
    named = isinstance(space["spaces"], Mapping)
    for name, part in space["spaces"].items() if named else enumerate(space["spaces"]):
        yield from _minari_paths(part, f"{path}/{name if named else f'_index_{name}'}", f"{key}/{name}".lstrip("/"))


def _put_together(h5py: Any, data: Path, parts: Path) -> None:
    """Make one file of the main one and the parts, in its place."""
    added = sorted(parts.glob("*.h5"))
    main, temporary = data / MAIN_FILE, parts / "main.tmp"
    if not added and main.is_file():
        return
    with h5py.File(temporary, "w", track_order=True) as file:
        if main.is_file():
            with h5py.File(main, "r") as old:
                for index in range(len(old)):
                    old.copy(f"episode_{index}", file)
        there = {int(group.attrs[NUMBER]) for group in file.values()}
        for path in added:
            if int(path.stem) not in there:  # it is if the last export was stopped between here and its end
                index = len(file)
                with h5py.File(path, "r") as part:
                    part.copy("episode", file, name=f"episode_{index}")
                file[f"episode_{index}"].attrs["id"] = index
    _flush(temporary)
    os.replace(temporary, main)


def _write_metadata(h5py: Any, data: Path, spec: DatasetSpec, name: str) -> None:
    with h5py.File(data / MAIN_FILE, "r") as file:
        steps = [int(group.attrs["total_steps"]) for group in file.values()]
    frames = spaces.Box(0, 255, (spec.height, spec.width, 3), np.uint8)
    described = spec.action_space or {"type": "Discrete", "n": len(spec.action_vocabulary)}
    metadata = {
        "total_episodes": len(steps),
        "total_steps": sum(steps),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(_minari_json(frames)),
        "action_space": json.dumps(_minari_json(space_of(described))),
        "dataset_id": name,
        "minari_version": LAYOUT_VERSION,
        "algorithm_name": spec.policy,
        "description": f"Exported by farworld {__version__}: {spec.env_id}, {spec.frames_per_second:g} frames/s.",
        "dataset_size": round((data / MAIN_FILE).stat().st_size / 1e6, 1),
        "farworld": spec.to_json(),
    }
    if env_spec := _env_spec(spec):
        metadata["env_spec"] = env_spec
    write_atomically(data / METADATA_FILE, json.dumps(metadata).encode())


def _env_spec(spec: DatasetSpec) -> str:
    """Gymnasium's description of the environment, from which Minari makes it again; empty if it is not there."""
    try:
        env_spec = copy.deepcopy(gymnasium.spec(resolve_env_id(spec.env_id).rpartition(":")[2]))
        env_spec.kwargs.update(spec.env_kwargs)
        return env_spec.to_json()
    except (ImportError, TypeError, ValueError, gymnasium.error.Error):
        return ""


def _minari_json(space: gymnasium.Space) -> dict[str, Any]:
    """Minari's JSON of a space."""
    kind = type(space).__name__
    match space:
        case spaces.Dict():
            return {"type": kind, "subspaces": {key: _minari_json(part) for key, part in space.spaces.items()}}
        case spaces.Tuple():
            return {"type": kind, "subspaces": [_minari_json(part) for part in space.spaces]}
        case spaces.Discrete():
            return {"type": kind, "dtype": "int64", "start": int(space.start), "n": int(space.n)}
        case spaces.MultiDiscrete():
            start, nvec = space.start.tolist(), space.nvec.tolist()
            return {"type": kind, "dtype": str(space.dtype), "nvec": nvec, "start": start}
        case spaces.MultiBinary():
            return {"type": kind, "n": space.n}
        case spaces.Box():
            bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
            return {"type": kind, "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
    raise ValueError(f"Minari has no place for the space {space}")
