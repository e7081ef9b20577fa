"""Recorded data on disk: a folder with `dataset.json` and one tar file an episode.

    DIR/dataset.json                what was recorded: environment, frame size, action vocabulary, timing
    DIR/episodes/episode-000000.tar one episode, in WebDataset naming; written whole or not at all
    DIR/recordings.jsonl            one line for each recording or import: when, how long, which numbers

`create_or_open` gives a `DatasetWriter`, of which several may write at once; `Dataset` reads.
"""

from farworld.actions import ACTION_TIMING
from farworld.dataset.episode import (
    DATASET_FORMAT,
    FORMAT_VERSION,
    DatasetSpec,
    Episode,
    check_actions,
    check_episode,
)
from farworld.dataset.format import CHUNK_FRAMES, DamageError, encode_episode, episode_name
from farworld.dataset.reader import Dataset, read_spec, recordings
from farworld.dataset.spaces import check_env_actions, describe_space, stack_actions, unstack_action
from farworld.dataset.writer import DatasetWriter, create_or_open, write_episode

__all__ = [
    "ACTION_TIMING",
    "CHUNK_FRAMES",
    "DATASET_FORMAT",
    "FORMAT_VERSION",
    "DamageError",
    "Dataset",
    "DatasetSpec",
    "DatasetWriter",
    "Episode",
    "check_actions",
    "check_env_actions",
    "check_episode",
    "create_or_open",
    "describe_space",
    "encode_episode",
    "episode_name",
    "read_spec",
    "recordings",
    "stack_actions",
    "unstack_action",
    "write_episode",
]
