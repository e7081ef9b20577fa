"""Recorded data on disk: a folder with `dataset.json` and its episodes.

    DIR/dataset.json                what was recorded: environment, frame size, action vocabulary and space, timing
    DIR/episodes/episode-000000.tar one episode, in WebDataset naming; written whole or not at all
    DIR/index.json, DIR/shards/     packed episodes, many in a file, and where each begins
    DIR/recordings.jsonl            one line for each recording, import or merge: when, how long, which numbers
    DIR/README.md                   the dataset card, if it was pulled from the hub

`create_or_open` gives a `DatasetWriter`, of which several may write at once; `Dataset` reads. `merge`, `select` and
`pack` make new datasets out of others; `hub` pushes and pulls; `remote` streams what is packed; `stats` measures.
"""

from farworld.actions import ACTION_TIMING
from farworld.dataset.derive import Criteria, Derived, merge, pack, select, split_positions
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
    "Criteria",
    "Derived",
    "check_actions",
    "check_env_actions",
    "check_episode",
    "create_or_open",
    "describe_space",
    "encode_episode",
    "episode_name",
    "merge",
    "pack",
    "read_spec",
    "recordings",
    "select",
    "split_positions",
    "stack_actions",
    "unstack_action",
    "write_episode",
]
