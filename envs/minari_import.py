"""Minari datasets (Farama's format for offline reinforcement learning), read without Minari.

    OUT/data/metadata.json   spaces, environment, counts
    OUT/data/main_data.hdf5  one group `episode_<i>` each, with observations (T + 1), actions, rewards, terminations
                             and truncations (T); or, in its Arrow formats, one folder `<i>` each with T + 1 rows

Time is as ours: action t is taken after observation t. Minari keeps pictures of 32 pixels and more a side as JPEG
unless its metadata says `jpeg_encoding: false`, which Minari 0.5.4 and later read and we write: raw arrays, behind
HDF5's own lossless compression.

Minari itself is not needed: it would bring its own command line and, to collect, jax.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from farworld.dataset import DatasetSpec
from farworld.envs.exchange import (
    ImportOptions,
    SourceEpisode,
    SourceHead,
    choose_picture,
    decode_image,
    digest_of,
    is_picture_shape,
    is_whole,
    lossy_kind,
    to_rgb,
)
from farworld.envs.vocabulary import leaves

METADATA_FILE = "metadata.json"
MAIN_FILE = "main_data.hdf5"
MIN_JPEG_SIDE = 32  # pixels; smaller pictures Minari stores raw in any case

# What an export of ours has beside what Minari knows.
NUMBER, DIGEST, SOURCE, POLICY = (f"farworld_{name}" for name in ("number", "digest", "source", "policy"))
INDICES = "farworld_actions"  # the vocabulary's indices, where Minari's actions are the environment's own


def datasets_root() -> Path:
    """Where Minari keeps its datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def find_data(source: str | os.PathLike) -> Path | None:
    """The folder with metadata.json for a dataset's folder, its data folder or its id; None if it is none."""
    for folder in (Path(source), Path(source) / "data", datasets_root() / source / "data"):
        if (folder / METADATA_FILE).is_file():
            return folder
    return None


def import_h5py() -> Any:
    """The module, or ImportError with the command that installs it."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError('Minari datasets need h5py; pip install "farworld[minari]"') from error
    return h5py


# Reading


def _space(values: Mapping[str, Any]) -> gymnasium.Space:
    """The space of which this is Minari's JSON."""
    match values["type"]:
        case "Discrete":
            return spaces.Discrete(values["n"], start=values["start"])
        case "MultiDiscrete":
            start = values.get("start")
            return spaces.MultiDiscrete(values["nvec"], dtype=values["dtype"], start=start)
        case "MultiBinary":
            return spaces.MultiBinary(values["n"])
        case "Box":
            low, high = (np.array(values[key], values["dtype"]) for key in ("low", "high"))
            return spaces.Box(low, high, tuple(values["shape"]), values["dtype"])
        case "Dict":
            return spaces.Dict({key: _space(part) for key, part in values["subspaces"].items()})
        case "Tuple":
            return spaces.Tuple([_space(part) for part in values["subspaces"]])
        case "Text":
            return spaces.Text(values["max_length"], min_length=values["min_length"], charset=values["charset"])
    raise ValueError(f"a space of the unknown type {values['type']!r}")


def _is_picture(space: gymnasium.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and is_picture_shape(space.shape)


def _is_jpeg(space: gymnasium.Space) -> bool:
    """Whether Minari takes the space for pictures, by its own rule."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return False
    return min(space.shape[:2]) >= MIN_JPEG_SIDE and bool(np.all(space.low == 0) and np.all(space.high == 255))


class _Stored(Protocol):
    """One episode as it lies on disk."""

    attributes: dict[str, Any]

    def read(self, member: str, keys: Sequence[str] = ...) -> Any:
        """The rows of a member, or of a part of it by the keys that lead there; None if there is no such member."""


class MinariSource:
    """A Minari dataset, open for reading.

    Args:
        source: its folder, the data folder in it, or its id in Minari's own place.
        options: which picture to take.

    Attributes:
        head: what it holds.

    Raises:
        FileNotFoundError: no such dataset.
        ValueError: it is damaged, or has no such picture.
        ImportError: h5py, or for the Arrow formats pyarrow, is not installed.
    """

    def __init__(self, source: str | os.PathLike, options: ImportOptions) -> None:
        data = find_data(source)
        if data is None:
            raise FileNotFoundError(f"no Minari dataset at {source}: expected a folder with data/{METADATA_FILE}")
        path = data / METADATA_FILE
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            name = f"minari {metadata['dataset_id']}"
            kind = metadata["data_format"]
            observations = dict(leaves(_space(json.loads(metadata["observation_space"]))))
            action_space = _space(json.loads(metadata["action_space"]))
            count = int(metadata["total_episodes"])
            env = json.loads(metadata.get("env_spec") or "{}")
            own = metadata.get("farworld")
            spec = None if own is None else DatasetSpec.from_json(own)
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not the metadata of a Minari dataset ({error!r})") from error
        if kind not in _READERS:
            raise ValueError(f"{path} has the data format {kind!r}; expected one of {', '.join(_READERS)}")
        named = {"/".join(keys) or "observation": keys for keys in observations}
        pictures = [key for key, keys in named.items() if _is_picture(observations[keys])]
        chosen = choose_picture(pictures, named, options.obs_key, name)
        self._keys = named[chosen]
        picture = observations[self._keys]
        self._shape = picture.shape
        self._encoded = bool(metadata.get("jpeg_encoding", True)) and _is_jpeg(picture)
        self._action_parts = dict(leaves(action_space))
        self._open = _READERS[kind](data, kind)
        others = [f"observations/{key}" for key in named if key != chosen]
        self.head = SourceHead(
            name=name,
            num_episodes=count,
            env_id=env.get("id") or name.replace(" ", "/"),
            env_kwargs=env.get("kwargs") or {},
            policy=metadata.get("algorithm_name") or "imported",
            action_space=action_space,
            obs_key="/".join(self._keys),
            frames_per_second=None if spec is None else spec.frames_per_second,
            spec=spec,
            left_out=() if own else (*others, "infos"),
        )

    def episodes(self) -> Iterator[SourceEpisode]:
        """Its episodes, one at a time."""
        for index in range(self.head.num_episodes):
            try:
                with self._open(index) as stored:
                    episode = None if stored is None else self._episode(index, stored)
            except (AttributeError, KeyError, IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"{self.head.name}, episode {index} is damaged: {error}") from error
            if episode is not None:
                yield episode

    def _episode(self, index: int, stored: _Stored) -> SourceEpisode:
        rewards, terminations, truncations = (
            np.asarray(stored.read(key)).reshape(-1) for key in ("rewards", "terminations", "truncations")
        )
        count = len(rewards)
        env_actions = {}
        for keys, space in self._action_parts.items():
            values = np.asarray(stored.read("actions", keys)).reshape(count, *(space.shape or ()))
            env_actions["/".join(keys) or "action"] = values.astype(np.int64 if is_whole(space) else np.float32)
        pictures = stored.read("observations", self._keys)
        pictures = [bytes(picture) for picture in pictures] if self._encoded else np.asarray(pictures, np.uint8)
        facts = stored.attributes
        exported = None
        if self.head.spec is not None:
            indices = stored.read(INDICES)
            start = getattr(self.head.action_space, "start", 0)
            exported = (env_actions["action"] - start, {}) if indices is None else (indices[:], env_actions)
        return SourceEpisode(
            label=f"episode {index}",
            digest=digest_of(
                *(index, *env_actions.values(), rewards, terminations[-1:], truncations[-1:]),
                *(pictures if self._encoded else [pictures]),
            ),
            pictures=lambda: self._decode(pictures),
            env_actions=env_actions,
            stored=exported,
            rewards=rewards.astype(np.float32),
            terminated=bool(terminations[-1:].any()),
            truncated=bool(truncations[-1:].any()) or not count,
            seed=int(facts.get("seed") or 0),
            policy=str(facts.get(POLICY, self.head.policy)),
            source=str(facts.get(SOURCE, "")),
            lossy=lossy_kind(pictures[0]) if self._encoded and len(pictures) else "",
        )

    def _decode(self, pictures: Any) -> Iterator[np.ndarray]:
        if self._encoded:
            return map(decode_image, pictures)
        return map(to_rgb, pictures.reshape(-1, *self._shape))


class _Hdf5Episode:
    def __init__(self, group: Any) -> None:
        self._group = group
        self.attributes = dict(group.attrs)

    def read(self, member: str, keys: Sequence[str] = ()) -> Any:
        found = self._group.get(member)
        for key in keys:
            found = found[key if key in found else f"_index_{key}"]  # so Minari names the parts of a Tuple
        return None if found is None else found[()]


def _hdf5_reader(data: Path, _: str) -> Callable[[int], contextlib.AbstractContextManager[_Stored | None]]:
    h5py = import_h5py()
    path = data / MAIN_FILE

    @contextlib.contextmanager
    def open_episode(index: int) -> Iterator[_Stored | None]:
        with h5py.File(path, "r") as file:
            group = file.get(f"episode_{index}")
            yield None if group is None else _Hdf5Episode(group)

    return open_episode


class _ArrowEpisode:
    def __init__(self, folder: Path, table: Any) -> None:
        self._table = table
        self.attributes = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))

    def read(self, member: str, keys: Sequence[str] = ()) -> Any:
        if member not in self._table.column_names:
            return None
        array = self._table[member].combine_chunks()
        array = array if member == "observations" else array[:-1]  # only the observations have T + 1 rows
        for key in keys:
            array = array.field(key)
        if str(array.type).startswith("fixed_size_list"):
            return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
        return array.to_pylist() if str(array.type) == "binary" else array.to_numpy(zero_copy_only=False)


def _arrow_reader(data: Path, kind: str) -> Callable[[int], contextlib.AbstractContextManager[_Stored | None]]:
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise ImportError(f'Minari datasets in {kind} files need pyarrow; pip install "farworld[minari]"') from error

    @contextlib.contextmanager
    def open_episode(index: int) -> Iterator[_Stored | None]:
        folder = data / str(index)
        if not folder.is_dir():
            yield None
            return
        rows = pyarrow.dataset.dataset(folder, format=kind, ignore_prefixes=["_", ".", METADATA_FILE])
        yield _ArrowEpisode(folder, rows.to_table())

    return open_episode


_READERS = {"hdf5": _hdf5_reader, "arrow": _arrow_reader, "parquet": _arrow_reader}
