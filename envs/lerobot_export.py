"""Datasets for LeRobot, written without LeRobot in its layouts 3.0 and 2.1; see `lerobot_import`.

Each of LeRobot's rows has a frame and the action taken there, so the last frame of an episode, after which there is
no action, repeats the one before, as LeRobot's own loaders pad an episode. Reward and end stand beside the action that
brought them.

Files appear whole or not at all, and a line in `meta/farworld.jsonl` says which episodes are in those that are there;
what LeRobot reads to find them is written from these lines at the end.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from farworld import __version__
from farworld.dataset import Dataset, DatasetSpec, Episode
from farworld.dataset.writer import write_atomically
from farworld.envs.exchange import ExportResult, already_exported, episode_digest, space_of
from farworld.envs.lerobot_import import (
    DONE,
    INDICES,
    INFO_FILE,
    OWN_EPISODES_FILE,
    OWN_FILE,
    REWARD,
    TRUNCATED,
    import_pyarrow,
    read_lines,
)
from farworld.envs.vocabulary import leaves
from farworld.lock import LOCK_FILE, lock_folder
from farworld.video import VideoWriter

ImageKind = Literal["png", "mp4", "mp4-lossless"]
LayoutName = Literal["v3.0", "v2.1"]

PICTURE_KEY = "observation.image"
MAX_FILE_MB = 100  # of rows with their pictures, or of a video; LeRobot's own bound for rows
FILES_IN_A_FOLDER = 1000
KEYFRAME_INTERVAL = 2  # as LeRobot has it: training asks for single frames, anywhere

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_PATHS = {
    "v3.0": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
    "v2.1": {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
}
_EPISODE_ROWS = 1000  # episodes described in one of LeRobot's files
_TEMPORARY = ".farworld"  # how files begin that are being written


def export_lerobot(
    dataset: Dataset,
    out: str | os.PathLike,
    *,
    images: ImageKind = "png",
    layout: LayoutName = "v3.0",
    on_episode: Callable[[], None] = lambda: None,
) -> ExportResult:
    """Write a dataset as one of LeRobot's; episodes that are there already are passed over.

    Args:
        dataset: ours.
        out: the folder.
        images: png: files in the rows; mp4: H.264 as people's players show it, which loses details; mp4-lossless:
            H.264 in RGB, which LeRobot reads and most players don't show.
        layout: v3.0, or v2.1 for releases of LeRobot before 0.4.
        on_episode: called after each episode.

    Raises:
        ValueError: the folder holds something else, or frames of odd sides were to become an mp4.
        ImportError: pyarrow or Pillow is not installed.
    """
    out, spec = Path(out), dataset.spec
    arrow = import_pyarrow()
    if images == "mp4" and (spec.height % 2 or spec.width % 2):
        raise ValueError(f"mp4 needs even sides, got {spec.height}x{spec.width}; use --images png or mp4-lossless")
    _check_folder(out)
    own = {"spec": spec.to_json(), "images": images, "layout": layout}
    (out / "meta").mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        if (out / OWN_FILE).is_file():
            found = json.loads((out / OWN_FILE).read_text(encoding="utf-8"))
            for key in ("images", "layout"):
                if found[key] != own[key]:
                    raise ValueError(f"{out} was begun with --{key} {found[key]}, not {own[key]}; give a new folder")
            if difference := DatasetSpec.from_json(found["spec"]).difference(spec):
                raise ValueError(f"{out} is an export of something else: {difference}; give a new folder")
        else:
            write_atomically(out / OWN_FILE, json.dumps(own).encode())
        for path in out.rglob(f"{_TEMPORARY}*"):
            path.unlink()
        journal = _Journal(out / OWN_EPISODES_FILE)
        known = {row["number"]: row["digest"] for row in journal.rows()}
        count, frames = 0, []
        with _Files(arrow, out, spec, images, layout, journal) as files:
            for i in range(len(dataset)):
                if already_exported(known, dataset, i, out):
                    count += 1
                else:
                    episode = dataset.episode(i)
                    files.add(episode, episode_digest(dataset, i))
                    frames.append(len(episode.frames))
                on_episode()
        _describe(arrow, out, spec, images, layout, journal)
    return ExportResult(episodes=len(frames), frames=sum(frames), known=count)


def _check_folder(out: Path) -> None:
    """Raise ValueError unless the folder is new, or holds an export of ours."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the export")
    names = sorted({path.name for path in out.iterdir()} - {LOCK_FILE}) if out.is_dir() else []
    begun = names == ["meta"] and not [path for path in (out / "meta").iterdir() if path.name[0] != "."]
    if names and not begun and not (out / OWN_FILE).is_file():
        raise ValueError(f"{out} holds {names[0]} and is no export of a farworld dataset; give a new folder")


class _Journal:
    """What is exported: one line of JSON for each episode."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        with open(path, "rb+") as file:  # half a line is of an export that was killed
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines, as they were added."""
        return read_lines(self._path)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines; they are on disk when this returns."""
        with open(self._path, "ab") as file:
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


# Features


def _features(spec: DatasetSpec, images: ImageKind) -> dict[str, dict[str, Any]]:
    """LeRobot's description of a row."""
    height, width = spec.height, spec.width
    picture: dict[str, Any] = {
        "dtype": "image" if images == "png" else "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
    }
    if images != "png":
        picture["info"] = {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p" if images == "mp4" else "gbrp",
            "video.is_depth_map": False,
            "video.fps": _rate(spec),
            "video.channels": 3,
            "has_audio": False,
        }
    features = {PICTURE_KEY: picture, "action": {"dtype": "int64", "shape": [1], "names": ["action"]}}
    if spec.action_space:
        names, kinds = [], set()
        for keys, space in leaves(space_of(spec.action_space)):
            size, name = int(np.prod(space.shape or ())), ".".join(keys) or "action"
            names += [name] if size == 1 else [f"{name}.{place}" for place in range(size)]
            kinds.add(np.dtype(space.dtype).kind)  # type: ignore[arg-type]
        kind = "float32" if "f" in kinds else "int64"
        features["action"] = {"dtype": kind, "shape": [len(names)], "names": names}
        features[INDICES] = {"dtype": "int64", "shape": [1], "names": None}
    for key, kind in (
        *((REWARD, "float32"), (DONE, "bool"), (TRUNCATED, "bool"), ("timestamp", "float32")),
        *((key, "int64") for key in ("frame_index", "episode_index", "index", "task_index")),
    ):
        features[key] = {"dtype": kind, "shape": [1], "names": None}
    return features


def _rate(spec: DatasetSpec) -> float:
    """Frames per second, as a whole number where they are: LeRobot expects one."""
    rate = spec.frames_per_second
    return int(rate) if rate == int(rate) else rate


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """Values repeated at the end, or zeros if there are none."""
    if len(values):
        return np.concatenate([values, values[-1:]])
    return np.zeros((length, *values.shape[1:]), values.dtype)


def _columns(
    spec: DatasetSpec, features: Mapping[str, Any], episode: Episode, episode_index: int, first: int
) -> dict[str, np.ndarray]:
    """The numbers of an episode's rows, (n,) or (n, k)."""
    count = len(episode.frames)
    ends = np.zeros((2, count), np.bool_)
    ends[:, -2:] = [[episode.terminated], [episode.truncated]]  # what has ended stays so
    columns = {
        "action": _padded(episode.actions, count),
        REWARD: np.append(episode.rewards, np.float32(0)),
        DONE: ends[0],
        TRUNCATED: ends[1],
        "timestamp": (np.arange(count) / spec.frames_per_second).astype(np.float32),
        "frame_index": np.arange(count),
        "episode_index": np.full(count, episode_index),
        "index": np.arange(first, first + count),
        "task_index": np.zeros(count, np.int64),
    }
    if INDICES in features:
        columns[INDICES] = columns["action"]
        parts = ["/".join(keys) or "action" for keys, _ in leaves(space_of(spec.action_space))]
        # Of a plain number the index says it all.
        own = episode.env_actions or {"action": episode.actions + spec.action_space.get("start", 0)}
        flat = [own[part].reshape(count - 1, own[part][:1].size or 1) for part in parts]
        if count > 1:
            columns["action"] = _padded(np.concatenate(flat, axis=1).astype(features["action"]["dtype"]), count)
        else:
            columns["action"] = np.zeros((1, *features["action"]["shape"]), features["action"]["dtype"])
    return columns


# Statistics, by which LeRobot's policies scale what they see


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """Of numbers, (n,) or (n, k): each statistic a list of k, as LeRobot's compute_stats."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    result = {name: getattr(rows, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    quantiles = np.quantile(rows, list(_QUANTILES.values()), axis=0).tolist()
    return {**result, "count": [len(rows)], **dict(zip(_QUANTILES, quantiles, strict=True))}


def _picture_statistics(frames: np.ndarray) -> dict[str, Any]:
    """Of frames, (n, H, W, 3), uint8: each statistic (3, 1, 1), on the scale from 0 to 1; exact, from histograms."""
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    below = np.cumsum(shares, axis=1)
    result = {
        "min": levels[(counts > 0).argmax(axis=1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(0, shares @ levels**2 - mean**2)),
        **{name: levels[(below >= share - 1e-12).argmax(axis=1)] for name, share in _QUANTILES.items()},
    }
    shaped: dict[str, Any] = {name: value.reshape(3, 1, 1).tolist() for name, value in result.items()}
    return {**shaped, "count": [len(frames)]}


def _combined(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One feature's statistics over all episodes; quantiles are the mean of theirs, as LeRobot has it."""
    total = 0
    low: Any = np.inf
    high: Any = -np.inf
    squares: Any = 0.0
    sums: dict[str, Any] = {}
    for row in rows:
        count = row["count"][0]
        total += count
        low, high = np.minimum(low, row["min"]), np.maximum(high, row["max"])
        squares = squares + count * (np.square(row["std"]) + np.square(row["mean"]))
        for name in ("mean", *_QUANTILES):
            sums[name] = sums.get(name, 0.0) + count * np.array(row[name])
    means = {name: value / total for name, value in sums.items()}
    std = np.sqrt(np.maximum(0, squares / total - np.square(means["mean"])))
    result = {"min": low, "max": high, "mean": means.pop("mean"), "std": std, **means}
    return {**{name: np.asarray(value).tolist() for name, value in result.items()}, "count": [total]}


# Files


class _Files:
    """The files that rows and pictures go to; in layout 3.0 several episodes share one of each."""

    def __init__(
        self, arrow: Any, out: Path, spec: DatasetSpec, images: ImageKind, layout: LayoutName, journal: _Journal
    ) -> None:
        self._arrow, self._out, self._spec = arrow, out, spec
        self._images, self._layout, self._journal = images, layout, journal
        self._features = _features(spec, images)
        self._schema = _schema(arrow, self._features, layout)
        self._episode_index = self._frame_index = self._file = 0
        for row in journal.rows():
            self._episode_index = row["episode_index"] + 1
            self._frame_index = row["from_index"] + row["length"]
            self._file = row["file"] + 1
        self._rows: list[dict[str, Any]] = []  # of the episodes in the open files
        self._parquet: Any = None
        self._video: VideoWriter | None = None
        self._video_frames = 0
        self._temporary = {
            name: out / name / f"{_TEMPORARY}-{os.getpid()}{suffix}"
            for name, suffix in (("data", ".parquet.tmp"), ("videos", ".mp4"))
        }

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._finish(keep=kind is None)

    def add(self, episode: Episode, digest: str) -> None:
        """Add an episode."""
        if self._parquet is None:
            self._open()
        columns = _columns(self._spec, self._features, episode, self._episode_index, self._frame_index)
        table = {key: _array(self._arrow, self._schema.field(key).type, values) for key, values in columns.items()}
        if self._images == "png":
            table[PICTURE_KEY] = _png_array(self._arrow, episode.frames)
        arrays = [table[name] for name in self._schema.names]
        self._parquet.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        if self._video is not None:
            for frame in episode.frames:
                self._video.write(frame)
        statistics = {key: _statistics(values) for key, values in columns.items()}
        rate = self._spec.frames_per_second
        self._rows.append(
            {
                "episode_index": self._episode_index,
                "length": len(episode.frames),
                "from_index": self._frame_index,
                "file": self._file,
                "from_timestamp": self._video_frames / rate,
                "to_timestamp": (self._video_frames + len(episode.frames)) / rate,
                "number": episode.index,
                "digest": digest,
                "seed": episode.seed,
                "source": episode.source,
                "policy": episode.policy,
                "terminated": episode.terminated,
                "truncated": episode.truncated,
                "stats": {PICTURE_KEY: _picture_statistics(episode.frames), **statistics},
            }
        )
        self._episode_index += 1
        self._frame_index += len(episode.frames)
        self._video_frames += len(episode.frames)
        written = [path.stat().st_size for path in self._temporary.values() if path.is_file()]
        if self._layout == "v2.1" or max(written) >= MAX_FILE_MB * 2**20:
            self._finish(keep=True)

    def _open(self) -> None:
        for path in self._temporary.values():
            path.parent.mkdir(exist_ok=True)
        self._parquet = self._arrow.parquet.ParquetWriter(self._temporary["data"], self._schema)
        self._video_frames = 0
        if self._images != "png":
            self._video = VideoWriter(
                self._temporary["videos"],
                *(self._spec.frames_per_second, self._spec.height, self._spec.width),
                lossless=self._images == "mp4-lossless",
                keyframe_interval=KEYFRAME_INTERVAL,
            )

    def _finish(self, keep: bool) -> None:
        """Close the open files; give them their names and note their episodes, or forget them."""
        if self._parquet is None:
            return
        self._parquet.close()
        if self._video is not None:
            self._video.close()
        for name, path in self._temporary.items():
            if path.is_file() and keep:
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
                final = self._out / self._place("data_path" if name == "data" else "video_path")
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, final)
            path.unlink(missing_ok=True)
        if keep:
            self._journal.add(self._rows)
        self._parquet = self._video = None
        self._rows = []
        self._file += 1

    def _place(self, kind: str) -> str:
        """Where a file goes; the numbers of files are those of episodes in layout 2.1."""
        folder, place = divmod(self._file, FILES_IN_A_FOLDER)
        return _PATHS[self._layout][kind].format(
            **{"video_key": PICTURE_KEY, "chunk_index": folder, "file_index": place},
            **{"episode_chunk": folder, "episode_index": self._file},
        )


def _schema(arrow: Any, features: Mapping[str, Any], layout: LayoutName) -> Any:
    """The parquet schema of rows, with what the `datasets` library reads to show pictures."""
    vector = "Sequence" if layout == "v2.1" else "List"  # as the release of `datasets` calls it that reads it
    fields: list[tuple[str, Any]] = []
    described: dict[str, Any] = {}
    for key, feature in features.items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            fields.append((key, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])))
            described[key] = {"_type": "Image"}
            continue
        kind = arrow.bool_() if feature["dtype"] == "bool" else arrow.type_for_alias(feature["dtype"])
        value = {"dtype": feature["dtype"], "_type": "Value"}
        (size,) = feature["shape"]
        fields.append((key, kind if size == 1 else arrow.list_(kind, size)))
        described[key] = value if size == 1 else {"feature": value, "length": size, "_type": vector}
    return arrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def _array(arrow: Any, kind: Any, values: np.ndarray) -> Any:
    if arrow.types.is_fixed_size_list(kind):
        return arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel(), kind.value_type), kind.list_size)
    return arrow.array(values.reshape(-1), kind)


def _png_array(arrow: Any, frames: np.ndarray) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("PNG pictures need Pillow; pip install pillow") from error
    files = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        files.append(buffer.getvalue())
    names = [f"frame-{place:06d}.png" for place in range(len(frames))]
    return arrow.StructArray.from_arrays([arrow.array(files, arrow.binary()), arrow.array(names)], ["bytes", "path"])


# What LeRobot reads first


def _describe(
    arrow: Any, out: Path, spec: DatasetSpec, images: ImageKind, layout: LayoutName, journal: _Journal
) -> None:
    """Write meta/ from the journal; info.json last, which makes the folder a dataset."""
    features = _features(spec, images)
    num_episodes = num_frames = 0
    for row in journal.rows():
        num_episodes, num_frames = num_episodes + 1, num_frames + row["length"]
    if not num_episodes:
        raise ValueError("there is no episode to export")
    statistics = {key: _combined(row["stats"][key] for row in journal.rows()) for key in features}
    info = {
        "codebase_version": layout,
        "robot_type": None,
        "total_episodes": num_episodes,
        "total_frames": num_frames,
        "total_tasks": 1,
        "chunks_size": FILES_IN_A_FOLDER,
        "fps": _rate(spec),
        "splits": {"train": f"0:{num_episodes}"},
        **_PATHS[layout],
        "features": features,
    }
    if images == "png":
        info["video_path"] = None
    task = spec.env_id
    if layout == "v3.0":
        info |= {"data_files_size_in_mb": MAX_FILE_MB, "video_files_size_in_mb": MAX_FILE_MB}
        _write_tasks(arrow, out, task)
        _write_episodes(arrow, out, task, images, journal)
        write_atomically(out / "meta" / "stats.json", json.dumps(statistics).encode())
    else:
        info["total_videos"] = 0 if images == "png" else num_episodes
        info["total_chunks"] = -(-num_episodes // FILES_IN_A_FOLDER)
        _write_lines(out / "meta" / "tasks.jsonl", [{"task_index": 0, "task": task}])
        _write_lines(
            out / "meta" / "episodes.jsonl",
            ({"episode_index": r["episode_index"], "tasks": [task], "length": r["length"]} for r in journal.rows()),
        )
        _write_lines(
            out / "meta" / "episodes_stats.jsonl",
            ({"episode_index": row["episode_index"], "stats": row["stats"]} for row in journal.rows()),
        )
    write_atomically(out / "README.md", _card(spec, num_episodes, num_frames).encode())
    write_atomically(out / INFO_FILE, json.dumps(info, indent=4).encode())


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomically(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def _parquet_bytes(arrow: Any, table: Any) -> bytes:
    buffer = io.BytesIO()
    arrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def _write_tasks(arrow: Any, out: Path, task: str) -> None:
    """The task by its number, as pandas writes a table whose index is the task: that is how LeRobot reads it."""
    index = "__index_level_0__"
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    texts = {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [column, texts],
        "pandas_version": "2.0.0",
    }
    table = arrow.table({"task_index": [0], index: [task]}).replace_schema_metadata({"pandas": json.dumps(pandas)})
    write_atomically(out / "meta" / "tasks.parquet", _parquet_bytes(arrow, table))


def _write_episodes(arrow: Any, out: Path, task: str, images: ImageKind, journal: _Journal) -> None:
    """Where each episode lies, and its statistics."""
    for number in itertools.count():
        first = number * _EPISODE_ROWS
        rows = list(itertools.islice(journal.rows(), first, first + _EPISODE_ROWS))
        if not rows:
            return
        folder, place = divmod(number, FILES_IN_A_FOLDER)
        table = arrow.Table.from_pylist([_episode_row(row, task, images, folder, place) for row in rows])
        path = out / f"meta/episodes/chunk-{folder:03d}/file-{place:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _parquet_bytes(arrow, table))


def _episode_row(row: Mapping[str, Any], task: str, images: ImageKind, folder: int, place: int) -> dict[str, Any]:
    chunk, file = divmod(row["file"], FILES_IN_A_FOLDER)
    videos: dict[str, Any] = {}
    if images != "png":
        times = {key: row[key] for key in ("from_timestamp", "to_timestamp")}
        places = {"chunk_index": chunk, "file_index": file, **times}
        videos = {f"videos/{PICTURE_KEY}/{key}": value for key, value in places.items()}
    return {
        "episode_index": row["episode_index"],
        "tasks": [task],
        "length": row["length"],
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": row["from_index"],
        "dataset_to_index": row["from_index"] + row["length"],
        **videos,
        **{f"stats/{key}/{name}": value for key, stats in row["stats"].items() for name, value in stats.items()},
        "meta/episodes/chunk_index": folder,
        "meta/episodes/file_index": place,
    }


def _card(spec: DatasetSpec, num_episodes: int, num_frames: int) -> str:
    """The page that the hub shows."""
    rows = "\n".join(f"- {index}: {name}" for index, name in enumerate(spec.action_vocabulary.names))
    return f"""---
tags:
- LeRobot
- world-model
configs:
- config_name: default
  data_files: data/*/*.parquet
---

Recorded in {spec.env_id} with farworld {__version__} and exported for LeRobot: {num_episodes} episodes, {num_frames}
frames of {spec.height}x{spec.width} at {spec.frames_per_second:g} per second.

An action is taken at the frame beside it and produces the next frame; the last frame of an episode repeats the action
before it. The actions:

{rows}
"""
