"""What is recorded: an episode, and the description of a dataset of episodes."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from farworld import __version__
from farworld.actions import ACTION_TIMING, ActionVocabulary
from farworld.dataset.spaces import check_description, check_env_actions

DATASET_FORMAT = "farworld-dataset"
FORMAT_VERSION = 2  # of what is written; version 1 lacked the policy and own actions of an episode
READABLE_VERSIONS = (1, FORMAT_VERSION)

_MAX_KEY_LENGTH = 56  # of a key of env_actions in a file's name inside a tar, which has 100 characters in all


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Episode:
    """One episode: T actions and T + 1 frames.

    Attributes:
        frames: (T + 1, H, W, 3), uint8.
        actions: (T,), int64, indices of the vocabulary; action t was taken after frame t and produced frame t + 1.
        rewards: (T,), float32.
        terminated: the environment ended the episode.
        truncated: the episode was cut for another reason, such as the wanted length.
        seed: what the environment was reset with.
        index: the episode's number in its dataset.
        source: where it came from: `human` if a person played it, the file if it was imported, empty for a policy's.
        policy: what chose the actions; `human` for a person, empty if nobody said.
        env_actions: what the environment was given, where that is more than a vocabulary's index: (T, ...), int64 or
            float32, for each part of its action space ("action" if it has no parts); see `spaces.stack_actions`.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool = False
    truncated: bool = True
    seed: int
    index: int
    source: str = ""
    policy: str = ""
    env_actions: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T + 1, H, W, 3), got {self.frames.dtype} {self.frames.shape}")
        num_actions = len(self.frames) - 1
        if num_actions < 0 or self.actions.shape != (num_actions,) or self.rewards.shape != (num_actions,):
            raise ValueError(
                f"{len(self.frames)} frames need {num_actions} actions and rewards (one between two frames), "
                f"got {self.actions.shape} and {self.rewards.shape}"
            )
        for key, array in self.env_actions.items():
            if not key or len(urllib.parse.quote(key, safe="")) > _MAX_KEY_LENGTH:
                raise ValueError(f"a key of env_actions must have 1 to {_MAX_KEY_LENGTH} plain letters, got {key!r}")
            if array.dtype not in (np.int64, np.float32) or array.shape[:1] != (num_actions,):
                raise ValueError(
                    f"env_actions[{key!r}] must be int64 or float32 ({num_actions}, ...), one row for each action, "
                    f"got {array.dtype} {array.shape}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """What a dataset holds; the content of dataset.json.

    Attributes:
        env_id: the Gymnasium id, or the name of the imported data set.
        env_kwargs: what the environment was made with.
        env_version: the release of whatever provides the environment.
        policy: what chose the actions of the first recording; every episode names its own.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        frames_per_second: the speed at which the world is meant to be seen.
        action_vocabulary: names and keys of the actions.
        action_timing: when an action is taken; this release knows only ACTION_TIMING.
        action_space: the environment's own, as `spaces.describe_space` gives it; empty if nobody said.
        obs_key: the key of a Dict observation that holds the frames; empty if they come from elsewhere.
        seed: of the first recording; every episode carries its own.
    """

    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    env_version: str = __version__
    policy: str = "explore"
    height: int
    width: int
    frames_per_second: float
    action_vocabulary: ActionVocabulary
    action_timing: str = ACTION_TIMING
    action_space: dict[str, Any] = field(default_factory=dict)
    obs_key: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.action_timing != ACTION_TIMING:
            raise ValueError(
                f"action_timing must be {ACTION_TIMING!r}, got {self.action_timing!r}; "
                "shift the actions when importing, so that action t is the one taken after frame t"
            )
        sides = self.height, self.width
        if not all(isinstance(side, int) and side > 0 for side in sides) or not self.frames_per_second > 0:
            raise ValueError(
                "height and width must be positive integers and frames_per_second positive, "
                f"got {self.height!r}, {self.width!r} and {self.frames_per_second!r}"
            )
        check_description(self.action_space)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        head = {"format": DATASET_FORMAT, "version": FORMAT_VERSION}
        values = asdict(replace(self, action_vocabulary=None))  # type: ignore[arg-type]
        return {**head, **values, "action_vocabulary": self.action_vocabulary.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DatasetSpec:
        """The inverse of to_json; also of what version 1 wrote.

        Raises:
            ValueError: no JSON object, another format or version, or a field is missing.
        """
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got a {type(values).__name__}")
        values = dict(values)
        name, version = values.pop("format", None), values.pop("version", None)
        if name != DATASET_FORMAT or version not in READABLE_VERSIONS:
            raise ValueError(
                f"expected {DATASET_FORMAT} version {FORMAT_VERSION} or older, got {name} version {version}"
            )
        try:
            values["action_vocabulary"] = ActionVocabulary.from_json(values["action_vocabulary"])
            return cls(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a field is missing, unknown or of the wrong type: {error}") from error

    def difference(self, other: DatasetSpec) -> str:
        """Say what keeps episodes of `other` out of this dataset; empty if nothing does."""
        names = ["env_id", "env_kwargs", "height", "width", "frames_per_second", "action_timing"]
        if self.action_space and other.action_space:  # version 1 said neither
            names += ["action_space", "obs_key"]
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} is {mine!r} there and {theirs!r} now"
        if self.action_vocabulary != other.action_vocabulary:
            mine, theirs = self.action_vocabulary.names, other.action_vocabulary.names
            return f"the actions are {', '.join(mine)} there and {', '.join(theirs)} now (names or keys differ)"
        return ""


def check_episode(spec: DatasetSpec, episode: Episode) -> None:
    """Raise ValueError unless the episode's frames and actions fit the spec."""
    if episode.frames.shape[1:] != (spec.height, spec.width, 3):
        raise ValueError(f"frames must be {spec.height}x{spec.width}x3 in this dataset, got {episode.frames.shape[1:]}")
    check_actions(spec, episode.actions)
    check_env_actions(spec.action_space, episode.env_actions, len(episode.actions))


def check_actions(spec: DatasetSpec, actions: np.ndarray) -> None:
    """Raise ValueError unless the actions are in the vocabulary."""
    outside = (actions < 0) | (actions >= len(spec.action_vocabulary))
    if outside.any():
        spec.action_vocabulary.check(int(actions[outside][0]))
