"""LeRobot datasets (Hugging Face's format for robots), read without LeRobot: its layouts 2.0, 2.1 and 3.0.

    ROOT/meta/info.json             features, frames per second, where the rest lies
    ROOT/data/chunk-000/*.parquet   one row for each frame: an episode a file (2.x), or many (3.0)
    ROOT/videos/.../*.mp4           the same for pictures, unless they are PNG files inside the rows
    ROOT/meta/episodes/...parquet   (3.0) in which video an episode is, and where it starts there

A row has an observation and the action taken there, so time is as ours; but an episode of n rows has n actions, and
what the last one led to was not recorded: it is dropped, with its reward and whether it ended the episode.

LeRobot itself is not needed: its pins exclude our releases of torch, PyAV and huggingface-hub.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
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
    is_whole,
    lossy_kind,
    space_of,
)
from farworld.envs.vocabulary import leaves

INFO_FILE = "meta/info.json"
OWN_FILE = "meta/farworld.json"  # what an export of ours was exported from
OWN_EPISODES_FILE = "meta/farworld.jsonl"  # one line for each of its episodes
INDICES = "vocabulary_index"  # the vocabulary's indices, where `action` is the environment's own
REWARD, DONE, TRUNCATED = "next.reward", "next.done", "next.truncated"
DEFAULT_FEATURES = ("timestamp", "frame_index", "episode_index", "index", "task_index")

_BATCH_ROWS = 64  # read at once: pictures lie in the rows


def find_root(source: str | os.PathLike) -> Path | None:
    """The folder of a dataset, given as that or as its id where LeRobot keeps it; None if it is none."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    home = Path(os.environ.get("HF_LEROBOT_HOME") or cache / "lerobot")
    return next((root for root in (Path(source), home / source) if (root / INFO_FILE).is_file()), None)


def import_pyarrow() -> Any:
    """The module with its parquet part, or ImportError with the command that installs it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('LeRobot datasets need pyarrow; pip install "farworld[lerobot]"') from error
    return pyarrow


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one line of JSON for each."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):  # else of a writer that was killed
                yield json.loads(line)


class LeRobotSource:
    """A LeRobot dataset, open for reading.

    Args:
        source: its folder, or its id where LeRobot keeps it.
        options: which picture to take.

    Attributes:
        head: what it holds.

    Raises:
        FileNotFoundError: no such dataset.
        ValueError: it is damaged, has no such picture, or actions that are text.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, source: str | os.PathLike, options: ImportOptions) -> None:
        self._arrow = import_pyarrow()
        root = find_root(source)
        if root is None:
            raise FileNotFoundError(f"no LeRobot dataset at {source}: expected a folder with {INFO_FILE}")
        self._root = root
        name = f"lerobot {root.resolve().name}"
        try:
            info = json.loads((root / INFO_FILE).read_text(encoding="utf-8"))
            version = str(info["codebase_version"])
            features = {key: dict(feature) for key, feature in info["features"].items()}
            kinds = {key: str(feature["dtype"]) for key, feature in features.items()}
            count, rate = int(info["total_episodes"]), float(info["fps"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{root / INFO_FILE} is not the description of a LeRobot dataset ({error!r})") from error
        self._major = version.lstrip("v").partition(".")[0]
        if self._major not in ("2", "3"):
            raise ValueError(f"{root} has the layout {version}; expected v2.0, v2.1 or v3.0")
        pictures = [key for key, kind in kinds.items() if kind in ("image", "video")]
        self._key = choose_picture(pictures, kinds, options.obs_key, name)
        self._is_video = kinds[self._key] == "video"
        self._info = info
        if "action" not in features:
            raise ValueError(f"{name} has no feature `action`, only {', '.join(features)}; it cannot be imported")
        own = self._read_own()
        space = space_of(own.action_space) if own and INDICES in features else self._action_space(features["action"])
        used = {self._key, "action", INDICES, REWARD, DONE, TRUNCATED, *DEFAULT_FEATURES}
        self._columns = [key for key in features if key in used and not (key == self._key and self._is_video)]
        self._rate = rate
        self.head = SourceHead(
            name=name,
            num_episodes=count,
            env_id=name.replace(" ", "/"),
            action_space=space,
            action_names=_names(features["action"]),
            obs_key=self._key,
            frames_per_second=rate,
            spec=own,
            left_out=() if own else (*(key for key in features if key not in used), "task"),
        )

    def _read_own(self) -> DatasetSpec | None:
        """What this was exported from, if by us."""
        self._own_episodes: dict[int, dict[str, Any]] = {}
        path = self._root / OWN_FILE
        if not path.is_file():
            return None
        try:
            spec = DatasetSpec.from_json(json.loads(path.read_text(encoding="utf-8"))["spec"])
            rows = read_lines(self._root / OWN_EPISODES_FILE)
            keep = ("seed", "source", "policy", "terminated", "truncated")
            self._own_episodes = {row["episode_index"]: {key: row[key] for key in keep} for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it to import what LeRobot sees of it") from error
        return spec

    def _action_space(self, feature: Mapping[str, Any]) -> gymnasium.Space:
        """The space of the actions: LeRobot knows a type and a size, and for whole numbers the range that occurs."""
        try:
            kind, shape = np.dtype(feature["dtype"]), tuple(int(side) for side in feature["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._root} has actions of {feature.get('dtype')!r}; expected numbers") from error
        size = int(np.prod(shape))
        if kind.kind == "f":
            return spaces.Box(-np.inf, np.inf, shape, np.float32)
        if kind.kind == "b":
            return spaces.MultiBinary(size)
        if kind.kind not in "iu":
            raise ValueError(f"{self._root} has actions of {feature['dtype']!r}; expected numbers")
        low, high = self._action_range(size)
        if size == 1:
            return spaces.Discrete(int(high[0] - low[0]) + 1, start=int(low[0]))
        return spaces.MultiDiscrete(high - low + 1, start=low)

    def _action_range(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and highest of whole-numbered actions; from 0, if they are not negative."""
        path = self._root / "meta" / "episodes_stats.jsonl"
        try:
            if path.is_file():
                rows = [row["stats"]["action"] for row in read_lines(path)]
            else:
                path = self._root / "meta" / "stats.json"
                rows = [json.loads(path.read_text(encoding="utf-8"))["action"]]
            low, high = (np.array([row[key] for row in rows], np.float64).reshape(-1, size) for key in ("min", "max"))
            return np.minimum(0, low.min(axis=0)).astype(np.int64), high.max(axis=0).astype(np.int64)
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not say between which bounds the actions are ({error!r})") from error

    def episodes(self) -> Iterator[SourceEpisode]:
        """Its episodes, one at a time."""
        videos = self._video_places() if self._is_video else {}
        for number, rows in self._tables():
            try:
                episode = self._episode(number, rows, videos.get(number))
            except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
                raise ValueError(f"{self.head.name}, episode {number} is damaged: {error}") from error
            yield episode

    def _tables(self) -> Iterator[tuple[int, Any]]:
        """The rows of each episode."""
        arrow = self._arrow
        number = -1
        held: list[Any] = []
        for path in sorted(self._root.glob("data/*/*.parquet")):
            try:
                with arrow.parquet.ParquetFile(path) as file:
                    # One group of rows after the other: asked for all, it keeps what it has read of each to the end.
                    groups = range(file.num_row_groups)
                    for batch in itertools.chain.from_iterable(
                        file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=self._columns) for group in groups
                    ):
                        numbers = np.asarray(batch["episode_index"])
                        starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
                        for start, stop in zip(starts[:-1], starts[1:], strict=True):
                            if start == stop:
                                continue
                            if numbers[start] != number:
                                if held:
                                    yield number, arrow.Table.from_batches(held)
                                number, held = int(numbers[start]), []
                            held.append(batch.slice(start, stop - start))
            except (arrow.ArrowException, KeyError, OSError) as error:
                raise ValueError(f"{path} is damaged, or no parquet file ({' '.join(str(error).split())})") from error
        if held:
            yield number, arrow.Table.from_batches(held)

    def _column(self, rows: Any, key: str) -> np.ndarray:
        """A feature of an episode, (n,) or (n, k)."""
        array = rows[key].combine_chunks()
        if hasattr(array, "flatten") and str(array.type).startswith(("fixed_size_list", "list", "large_list")):
            return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
        return array.to_numpy(zero_copy_only=False)

    def _episode(self, number: int, rows: Any, video: tuple[Path, float] | None) -> SourceEpisode:
        count = len(rows)
        order = self._column(rows, "frame_index").reshape(-1)
        if not np.array_equal(order, np.arange(count)):
            raise ValueError(f"its rows must be frames 0 to {count - 1} in their order")
        names = rows.column_names
        rewards, done, cut = (
            self._column(rows, key).reshape(-1)[:-1] if key in names else np.zeros(count - 1)
            for key in (REWARD, DONE, TRUNCATED)
        )
        taken = self._column(rows, "action").reshape(count, -1)[:-1]
        env_actions = self._env_actions(taken)
        own = self._own_episodes.get(number)
        exported = None
        if self.head.spec is not None:
            if own is None:
                raise ValueError(f"{self._root / OWN_EPISODES_FILE} does not list it")
            indices = self._column(rows, INDICES if INDICES in names else "action").reshape(-1)[:-1].astype(np.int64)
            start = self.head.spec.action_space.get("start", 0)
            plain = self.head.spec.action_space.get("type") in (None, "Discrete")
            implied = plain and np.array_equal(taken[:, 0], indices + start)
            exported = (indices, {} if implied else env_actions)
        facts = own or {"terminated": bool(done[-1:].any()), "seed": 0, "policy": self.head.policy, "source": ""}
        if own is None:
            facts["truncated"] = bool(cut[-1:].any()) or not facts["terminated"]
        pictures, contents, lossy = self._pictures(rows, video)
        return SourceEpisode(
            label=f"episode {number}",
            digest=digest_of(number, taken, rewards, done, cut, *contents),
            pictures=pictures,
            env_actions=env_actions,
            stored=exported,
            rewards=rewards.astype(np.float32),
            lossy=lossy,
            **facts,
        )

    def _env_actions(self, taken: np.ndarray) -> dict[str, np.ndarray]:
        """The parts of actions that lie in one vector, (T, k)."""
        parts, start = {}, 0
        for keys, space in leaves(self.head.action_space):
            size = int(np.prod(space.shape or ()))
            values = taken[:, start : start + size].reshape(len(taken), *(space.shape or ()))
            parts["/".join(keys) or "action"] = values.astype(np.int64 if is_whole(space) else np.float32)
            start += size
        if start != taken.shape[1]:
            raise ValueError(f"its actions have {taken.shape[1]} components, expected {start}")
        return parts

    def _pictures(
        self, rows: Any, video: tuple[Path, float] | None
    ) -> tuple[Callable[[], Iterator[np.ndarray]], Sequence[bytes], str]:
        """What decodes the frames, what identifies them, and how they were compressed if that lost something."""
        if not self._is_video:
            files = [self._file_content(value) for value in rows[self._key].to_pylist()]
            return lambda: map(decode_image, files), files, lossy_kind(files[0])
        if video is None:
            raise ValueError("no video is named for it")
        path, start = video
        if not path.is_file():
            raise ValueError(f"there is no video {path}")
        times = (start + self._column(rows, "timestamp").reshape(-1).astype(np.float64)).tolist()
        tolerance = 0.5 / self._rate
        digest, codec = _identify_video(path, times[0] - tolerance, times[-1] + tolerance)
        return lambda: _video_frames(path, times, tolerance), [digest], codec

    def _file_content(self, value: Any) -> bytes:
        """The image file in a row, or beside it."""
        data, path = (value["bytes"], value["path"]) if isinstance(value, dict) else (value, "")
        return bytes(data) if data is not None else (self._root / str(path)).read_bytes()

    def _video_places(self) -> dict[int, tuple[Path, float]]:
        """For each episode, its video and the second at which it starts there."""
        template, key = str(self._info.get("video_path")), self._key
        try:
            if self._major == "2":
                size = int(self._info["chunks_size"])
                return {
                    n: (
                        self._root / template.format(episode_chunk=n // size, video_key=key, episode_index=n),
                        0.0,
                    )
                    for n in range(self.head.num_episodes)
                }
            names = [
                "episode_index",
                *(f"videos/{key}/{what}" for what in ("chunk_index", "file_index", "from_timestamp")),
            ]
            places = {}
            for path in sorted(self._root.glob("meta/episodes/*/*.parquet")):
                rows = self._arrow.parquet.read_table(path, columns=names)
                for n, chunk, file, start in zip(*(rows[name].to_pylist() for name in names), strict=True):
                    video = template.format(video_key=key, chunk_index=chunk, file_index=file)
                    places[n] = (self._root / video, start)
            return places
        except (self._arrow.ArrowException, IndexError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{self._root}/meta does not say where the videos are ({error!r})") from error


def _names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a vector's components: a list, a list under some key, or places by name; () if there are none."""
    names = feature.get("names")
    if isinstance(names, dict) and len(names) == 1 and isinstance(next(iter(names.values())), list):
        names = next(iter(names.values()))
    if isinstance(names, dict) and all(isinstance(place, int) for place in names.values()):
        names = sorted(names, key=names.__getitem__)
    known = isinstance(names, list) and len(names) == int(np.prod(feature["shape"]))
    return tuple(map(str, names)) if known else ()  # type: ignore[arg-type]


# Videos


def _open_video(path: Path, start: float) -> tuple[Any, Any]:
    """A container, positioned at or before a time, and its video stream."""
    container: Any = av.open(os.fspath(path))
    stream = container.streams.video[0]
    if start > 0:
        container.seek(int(start / stream.time_base), stream=stream)
    return container, stream


def _identify_video(path: Path, start: float, stop: float) -> tuple[bytes, str]:
    """A hash of the compressed pictures between two times, and the codec if it loses something.

    They are copied as they are when files are put together, so that an episode is known again in a longer file.
    """
    try:
        container, stream = _open_video(path, start)
        with container:
            codec = stream.codec_context.codec.canonical_name
            lossless = stream.codec_context.pix_fmt == "gbrp" or codec in ("ffv1", "png")
            packets = []
            for packet in container.demux(stream):
                if packet.pts is None:
                    continue
                if packet.dts is not None and packet.dts * stream.time_base >= stop:
                    break
                if start <= packet.pts * stream.time_base < stop:
                    packets.append((packet.pts, bytes(packet)))
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video ({error})") from error
    digest = hashlib.sha256()
    for _, data in sorted(packets):
        digest.update(data)
    return digest.digest(), "" if lossless else f"{codec} video"


def _video_frames(path: Path, times: Sequence[float], tolerance: float) -> Iterator[np.ndarray]:
    """The frames nearest to some times, which ascend; all within a tolerance in seconds."""
    try:
        container, stream = _open_video(path, times[0] - tolerance)
        with container:
            frames = (frame for frame in container.decode(stream) if frame.time is not None)
            frame, following = next(frames, None), next(frames, None)
            for time in times:
                while frame is not None and following is not None:
                    if abs(following.time - time) > abs(frame.time - time):
                        break
                    frame, following = following, next(frames, None)
                if frame is None or abs(frame.time - time) > tolerance:
                    raise ValueError(f"{path} has no frame at {time:.3f} s")
                yield frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be decoded as a video ({error})") from error
