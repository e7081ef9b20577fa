"""Datasets of other tools: what their importers and exporters share.

A reader of a foreign dataset is a `Source`: it describes the dataset in our terms and yields its episodes one at a
time, with the actions already beside the frames that they were taken after. `import_source` does the rest: the same
for every kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from farworld.actions import ActionVocabulary
from farworld.dataset import (
    Dataset,
    DatasetSpec,
    DatasetWriter,
    Episode,
    create_or_open,
    describe_space,
    stack_actions,
)
from farworld.dataset.spaces import parts_of
from farworld.envs.environments import DEFAULT_FRAMES_PER_SECOND
from farworld.envs.frames import Fit, fit_square
from farworld.envs.teco import known_digests
from farworld.envs.vocabulary import ActionTable, action_table, read_action_file

FormatName = Literal["minari", "lerobot"]

CLAIMED_AT_ONCE = 256  # numbers for episodes; what is not used is given back
MIN_PICTURE_SIDE = 16  # pixels; smaller uint8 arrays, such as MiniGrid's 7x7 grids, are no pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """What an import can be told.

    Attributes:
        obs_key: which picture of an observation, or which camera; empty for the only one.
        size: height and width of the frames in pixels; None keeps theirs.
        fit: how a picture that is no square becomes one; see fit_square.
        frames_per_second: None takes what the dataset says.
        actions: a TOML file with a vocabulary; see vocabulary.read_action_file.
        env_id: what world it is of, so that parts of one data set go together; empty takes what it says.
    """

    obs_key: str = ""
    size: int | None = None
    fit: Fit = "crop"
    frames_per_second: float | None = None
    actions: Path | None = None
    env_id: str = ""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be 1 or more pixels, got {self.size}")
        rate = self.frames_per_second
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"frames per second must be positive, got {rate}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """What an import did.

    Attributes:
        episodes: added.
        frames: added.
        known: episodes that the dataset had already.
        missing: episodes that the source names and does not have.
        approximated: actions that were none of the vocabulary's and became the nearest of it.
        lossy: how the source had compressed the frames, if that lost something.
        left_out: what the source has and our datasets have no place for.
        frames_per_second: of the dataset.
        assumed_rate: the source does not say how fast it runs.
    """

    episodes: int
    frames: int
    known: int
    missing: int
    approximated: int
    lossy: str
    left_out: tuple[str, ...]
    frames_per_second: float
    assumed_rate: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """What an export did: episodes and frames added, and episodes that were there already."""

    episodes: int
    frames: int
    known: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceHead:
    """A foreign dataset in our terms.

    Attributes:
        name: of the dataset, with its kind: "minari D4RL/door-v2".
        num_episodes: as many as it says it has.
        env_id: see DatasetSpec, as the following.
        env_kwargs: what the environment was made with.
        policy: what chose the actions.
        action_space: of the environment's own actions.
        action_names: of the components of an action that is one vector, if they have names.
        obs_key: which picture was chosen.
        frames_per_second: None if the dataset does not say.
        spec: of the farworld dataset that was exported to it; None if it comes from elsewhere.
        left_out: what cannot be imported.
    """

    name: str
    num_episodes: int
    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    policy: str = "imported"
    action_space: gymnasium.Space
    action_names: tuple[str, ...] = ()
    obs_key: str = ""
    frames_per_second: float | None = None
    spec: DatasetSpec | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SourceEpisode:
    """One foreign episode: T actions, and T + 1 pictures that are not decoded yet.

    Attributes:
        label: what the episode is called in messages.
        digest: of what is imported, so that it is known again wherever it lies.
        pictures: decodes the frames one by one, (H, W, 3), uint8.
        env_actions: the environment's own actions, (T, ...) for each part of its action space.
        stored: the actions and env_actions of the episode that was exported; None if it comes from elsewhere.
        rewards: (T,), float32.
        terminated: see Episode, as the following.
        truncated: cut for another reason.
        seed: what the environment was reset with.
        policy: what chose the actions.
        source: where it came from before.
        lossy: how its frames were compressed, if that lost something.
    """

    label: str
    digest: str
    pictures: Callable[[], Iterator[np.ndarray]]
    env_actions: dict[str, np.ndarray]
    stored: tuple[np.ndarray, dict[str, np.ndarray]] | None = None
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int
    policy: str
    source: str = ""
    lossy: str = ""


class Source(Protocol):
    """A foreign dataset, open for reading."""

    @property
    def head(self) -> SourceHead:
        """What it holds."""

    def episodes(self) -> Iterator[SourceEpisode]:
        """Its episodes, of which no more than one is held in memory."""


def open_source(path: str | os.PathLike, kind: FormatName | None, options: ImportOptions) -> Source:
    """Open a foreign dataset for reading.

    Args:
        path: its folder, or its id where its own tool keeps it.
        kind: what it is; None finds out.
        options: what to take of it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or has not what the options want.
        ImportError: what reads it is not installed.
    """
    from farworld.envs import lerobot_import, minari_import

    if kind is None:
        found = {"lerobot": lerobot_import.find_root(path), "minari": minari_import.find_data(path)}
        kinds = [name for name, folder in found.items() if folder is not None]
        if len(kinds) > 1:
            raise ValueError(f"{path} is a dataset of {' and of '.join(kinds)}; say which with --format")
        if (Path(path) / "dataset.json").is_file():
            raise ValueError(f"{path} is a farworld dataset already; put datasets together with `farworld data merge`")
        if not kinds:
            what = (
                "no such folder" if not Path(path).exists() else "neither data/metadata.json nor meta/info.json in it"
            )
            raise FileNotFoundError(f"no Minari or LeRobot dataset at {path}: {what}")
        kind = kinds[0]  # type: ignore[assignment]
    reader = lerobot_import.LeRobotSource if kind == "lerobot" else minari_import.MinariSource
    return reader(path, options)


# Spaces


def is_whole(space: gymnasium.Space) -> bool:
    """Whether the values of a space that has no parts are whole numbers."""
    return np.issubdtype(space.dtype, np.integer)  # type: ignore[arg-type]


def space_of(description: Mapping[str, Any]) -> gymnasium.Space:
    """The space of which this is the description: the inverse of describe_space."""
    match description["type"]:
        case "Dict":
            return spaces.Dict({key: space_of(part) for key, part in description["spaces"].items()})
        case "Tuple":
            return spaces.Tuple([space_of(part) for part in description["spaces"]])
        case "Discrete":
            return spaces.Discrete(description["n"], start=description.get("start", 0))
        case "MultiDiscrete":
            return spaces.MultiDiscrete(description["nvec"], start=description.get("start"))
        case "MultiBinary":
            return spaces.MultiBinary(description["n"])
    shape, dtype = tuple(description["shape"]), np.dtype(description["dtype"])
    bounds = {}
    for key, none in (("low", -np.inf), ("high", np.inf)):
        bound = np.array(description[key], np.float64)  # None becomes NaN
        bounds[key] = np.broadcast_to(np.where(np.isnan(bound), none, bound), shape).astype(dtype)
    return spaces.Box(bounds["low"], bounds["high"], shape, dtype.type)


# Actions


class ActionMap:
    """From an environment's own actions to the nearest of a vocabulary."""

    def __init__(self, table: ActionTable) -> None:
        self.vocabulary = table.vocabulary
        space = describe_space(table.space)
        self._entries = stack_actions(space, table.env_actions)
        self._continuous = {key for key, part in parts_of(space).items() if part["type"] == "Box"}

    def nearest(self, env_actions: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
        """The vocabulary's nearest action to each, (T,), int64, and how many are not exactly one of its actions.

        A component of a discrete space that differs counts 1, whatever the difference, since it is a name more than
        an amount; one of a Box counts the square of the difference, as a share of what it spans in the vocabulary.
        The first of equals is taken.
        """
        count = len(next(iter(env_actions.values())))
        distance = np.zeros((len(self.vocabulary), count))
        for key, values in env_actions.items():
            entries = self._entries[key].reshape(len(self.vocabulary), -1).astype(np.float64)
            flat = values.reshape(count, entries.shape[1]).astype(np.float64)
            span = np.ptp(entries, axis=0)
            for index, entry in enumerate(entries):
                amount = ((flat - entry) / np.where(span, span, 1)) ** 2
                distance[index] += (amount if key in self._continuous else flat != entry).sum(axis=1)
        return distance.argmin(axis=0).astype(np.int64), int((distance.min(axis=0) > 0).sum())


def map_actions(head: SourceHead, path: Path | None) -> ActionMap:
    """The vocabulary for a source: from a file, else the one that a recording of such actions gets.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not fit, or the actions are continuous and there is none.
    """
    space, names = head.action_space, head.action_names
    if path is not None:
        return ActionMap(read_action_file(path, space, {(): names} if names else None))
    parts = parts_of(describe_space(space))
    continuous = [key for key, part in parts.items() if part["type"] == "Box"]
    if continuous:
        raise ValueError(
            f"{head.name} has continuous actions ({', '.join(continuous)}: {space}); say which to tell apart with "
            "--actions FILE.toml, one table [[actions]] with name, keys and action for each"
        )
    return ActionMap(action_table(_Actor(space)))


class _Actor(gymnasium.Env):
    """Whoever made a dataset, of whom no more is known than the actions."""

    def __init__(self, action_space: gymnasium.Space) -> None:
        self.action_space = action_space


# Pictures


def is_picture_shape(shape: Sequence[int], min_side: int = MIN_PICTURE_SIDE) -> bool:
    """Whether uint8 arrays of this shape can be pictures: grey or RGB, channels last or first."""
    if len(shape) == 3 and shape[2] in (1, 3):
        shape = shape[:2]
    elif len(shape) == 3 and shape[0] in (1, 3):
        shape = shape[1:]
    return len(shape) == 2 and min(shape) >= min_side


def to_rgb(picture: np.ndarray) -> np.ndarray:
    """A picture as (H, W, 3), uint8, from what is_picture_shape accepts."""
    if picture.ndim == 2:
        picture = picture[..., None]
    elif picture.shape[2] not in (1, 3):
        picture = picture.transpose(1, 2, 0)
    return picture if picture.shape[2] == 3 else picture.repeat(3, axis=2)


def decode_image(data: bytes) -> np.ndarray:
    """The picture of a PNG, JPEG or other image file: (H, W, 3), uint8.

    Raises:
        ValueError: it is damaged.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("pictures in image files need Pillow; pip install pillow") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"damaged picture ({error})") from error


def lossy_kind(data: bytes) -> str:
    """What an image file lost its details to; empty if to nothing."""
    return "JPEG" if data[:3] == b"\xff\xd8\xff" else ""


def choose_picture(candidates: Iterable[str], others: Iterable[str], wanted: str, name: str) -> str:
    """The key of the picture to import.

    A wanted key may be the whole of a candidate's name or its last part.

    Raises:
        ValueError: none, several, or not the wanted one; the message has the candidates.
    """
    names = list(candidates)
    listed = ", ".join(names)
    if wanted:
        found = [key for key in names if key == wanted] or [
            key for key in names if key.replace("/", ".").endswith(f".{wanted}")
        ]
        if len(found) != 1:
            raise ValueError(
                f"{name} has no picture {wanted!r}; choose --obs-key from {listed or 'nothing: it has none'}"
            )
        return found[0]
    if not names:
        raise ValueError(f"{name} has no pictures, only {', '.join(others) or 'nothing'}; it cannot be imported")
    if len(names) > 1:
        raise ValueError(f"{name} has {len(names)} pictures; choose one with --obs-key: {listed}")
    return names[0]


# Import


def digest_of(*parts: Any) -> str:
    """What identifies an episode wherever it lies: a hash of numbers, text, bytes and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        if isinstance(part, np.ndarray):
            data = np.ascontiguousarray(part).tobytes()
        digest.update(f"{len(data)}:".encode())  # so that parts cannot run into each other
        digest.update(data)
    return f"sha256:{digest.hexdigest()[:32]}"


def episode_digest(dataset: Dataset, i: int) -> str:
    """What identifies an episode of ours in an export, without decoding its frames."""
    env_actions = dataset.env_actions(i)
    return digest_of(
        *(dataset.num_frames(i), dataset.seed(i), dataset.source(i), dataset.policy(i)),
        *(dataset.terminated(i), dataset.truncated(i), dataset.actions(i), dataset.rewards(i)),
        *itertools.chain.from_iterable(env_actions.items()),
    )


def already_exported(known: Mapping[int, str], dataset: Dataset, i: int, out: Path) -> bool:
    """Whether the i-th episode is in an export, by the digests there of the episodes' numbers.

    Raises:
        ValueError: another episode has its number there.
    """
    found = known.get(dataset.number(i))
    if found is None:
        return False
    if found != episode_digest(dataset, i):
        raise ValueError(
            f"{out} holds another {dataset.episodes[i]} than {dataset.directory}; export into a new folder"
        )
    return True


def import_source(
    source: Source,
    directory: str | os.PathLike,
    options: ImportOptions,
    *,
    on_episode: Callable[[], None] = lambda: None,
) -> ImportResult:
    """Add the episodes of a foreign dataset to one of ours; an episode that it has already is passed over.

    Each episode is on disk, whole, before the next is read: whatever stops an import, it goes on when run again.

    Args:
        source: the foreign dataset.
        directory: the dataset's folder; made if it is not there.
        options: what to take.
        on_episode: called after each episode of the source.

    Raises:
        ValueError: the source is damaged, or the dataset holds something else; what came before is kept.
    """
    head = source.head
    convert = _Converter(head, options)
    known = known_digests(Path(directory))
    rate = options.frames_per_second or head.frames_per_second or DEFAULT_FRAMES_PER_SECOND
    lengths: list[int] = []
    num_known, lossy = 0, ""
    with contextlib.ExitStack() as stack:
        writer: DatasetWriter | None = None
        for episode in source.episodes():
            if episode.digest in known:
                num_known += 1
                on_episode()
                continue
            with _naming(head, episode):
                frames = convert.frames(episode)
            if writer is None:
                spec = convert.spec(frames.shape[1], frames.shape[2], rate)
                writer = stack.enter_context(create_or_open(directory, spec))
                writer.note(what="import", policy=spec.policy, source=head.name)
                numbers = _numbers(writer)
            with _naming(head, episode):
                writer.write(convert.episode(episode, frames, next(numbers)))
            lossy = lossy or episode.lossy
            lengths.append(len(frames))
            on_episode()
    return ImportResult(
        episodes=len(lengths),
        frames=sum(lengths),
        known=num_known,
        missing=max(0, head.num_episodes - len(lengths) - num_known),
        approximated=convert.approximated,
        lossy=lossy,
        left_out=head.left_out,
        frames_per_second=rate,
        assumed_rate=not (options.frames_per_second or head.frames_per_second),
    )


def _numbers(writer: DatasetWriter) -> Iterator[int]:
    """Numbers for new episodes: many at once, since each claim looks through the folder."""
    while True:
        yield from writer.claim(CLAIMED_AT_ONCE)


@contextlib.contextmanager
def _naming(head: SourceHead, episode: SourceEpisode) -> Iterator[None]:
    """Name the episode in what goes wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{head.name}, {episode.label}: {error}") from error


class _Converter:
    """Makes our episodes of a source's."""

    def __init__(self, head: SourceHead, options: ImportOptions) -> None:
        self._head = head
        self._options = options
        self._map: ActionMap | None = None
        if head.spec is not None and options.actions is None:  # the indices of our own export are kept
            self._vocabulary: ActionVocabulary = head.spec.action_vocabulary
        else:
            self._map = map_actions(head, options.actions)
            self._vocabulary = self._map.vocabulary
        self.approximated = 0

    def spec(self, height: int, width: int, rate: float) -> DatasetSpec:
        """What the dataset holds."""
        head = self._head
        base = head.spec or DatasetSpec(
            env_id=head.env_id,
            env_kwargs=head.env_kwargs,
            policy=head.policy,
            height=height,
            width=width,
            frames_per_second=rate,
            action_vocabulary=self._vocabulary,
            action_space=describe_space(head.action_space),
            obs_key=head.obs_key,
        )
        spec = dataclasses.replace(base, height=height, width=width, frames_per_second=rate)
        if self._options.env_id:
            spec = dataclasses.replace(spec, env_id=self._options.env_id)
        if self._map is None:
            return spec
        space = describe_space(head.action_space)
        return dataclasses.replace(spec, action_vocabulary=self._vocabulary, action_space=space)

    def frames(self, episode: SourceEpisode) -> np.ndarray:
        """(T + 1, H, W, 3), uint8: decoded and resized one by one."""
        size, fit = self._options.size, self._options.fit
        pictures: list[np.ndarray] = []
        for picture in episode.pictures():
            fitted = picture if size is None else fit_square(picture, size, fit)
            if pictures and fitted.shape != pictures[0].shape:
                raise ValueError(f"frames must keep their size, expected {pictures[0].shape}, got {fitted.shape}")
            pictures.append(fitted)
        if len(pictures) != len(episode.rewards) + 1:
            raise ValueError(f"{len(pictures)} frames and {len(episode.rewards)} actions; expected one frame more")
        return np.stack(pictures)

    def episode(self, episode: SourceEpisode, frames: np.ndarray, number: int) -> Episode:
        """The whole episode."""
        if self._map is None:
            assert episode.stored is not None  # since the source's head has a spec
            actions, env_actions = episode.stored
        else:
            actions, inexact = self._map.nearest(episode.env_actions)
            self.approximated += inexact
            plain = isinstance(self._head.action_space, spaces.Discrete) and self._options.actions is None
            env_actions = {} if plain else episode.env_actions  # the index of a plain number says it all
        before = f"{episode.source}; " if episode.source else ""
        remarks = ", ".join(filter(None, [episode.label, episode.lossy and f"lossy {episode.lossy}"]))
        return Episode(
            frames=frames,
            actions=actions,
            rewards=episode.rewards.astype(np.float32),
            terminated=episode.terminated,
            truncated=episode.truncated,
            seed=episode.seed,
            index=number,
            policy=episode.policy,
            env_actions=env_actions,
            source=f"{before}{self._head.name} {remarks} {episode.digest}",
        )
