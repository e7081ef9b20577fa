"""Datasets on the Hugging Face hub: push a packed one, pull it back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farworld.dataset.derive import SHARD_BYTES, check_new, pack
from farworld.dataset.format import CHUNK_FRAMES, end_of_tar
from farworld.dataset.reader import CARD_FILE, DATASET_FILE, EPISODES_FOLDER, RECORDINGS_FILE, Dataset
from farworld.dataset.shards import INDEX_FILE, SHARDS_FOLDER, read_index
from farworld.dataset.stats import policies
from farworld.hub import hub_errors, reason_of
from farworld.lock import LOCK_FILE, lock_folder

FILES = (DATASET_FILE, INDEX_FILE, RECORDINGS_FILE, CARD_FILE, f"{SHARDS_FOLDER}/*")  # of a dataset on the hub
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_GENERATED = "<!-- Written by `farworld data push`, which writes it anew unless this line is taken out. -->"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What was uploaded."""

    repository: str
    url: str
    episodes: int
    files: int
    num_bytes: int


def parse_repository(text: str) -> tuple[str, str | None]:
    """The name and the revision of `owner/name[@revision]`.

    Raises:
        ValueError: it is something else.
    """
    name, _, revision = text.partition("@")
    if not re.fullmatch(f"{_PART}/{_PART}", name):
        raise ValueError(f"expected a hub repository owner/name or owner/name@revision, got {text!r}")
    return name, revision or None


def push(
    directory: str | os.PathLike,
    repository: str,
    *,
    private: bool = False,
    licence: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_episode: Callable[[], None] = lambda: None,
) -> Pushed:
    """Upload a dataset, in one commit, with a dataset card; what is there is replaced.

    One that is not packed, or that names only a part of its shards' episodes, is packed into a temporary folder
    beside it first.

    Args:
        directory: the dataset.
        repository: `owner/name`, which is made if it is not there.
        private: whether a new repository is.
        licence: its name on the hub, for the card, such as `cc-by-4.0`.
        shard_bytes: see pack.
        on_episode: called after each episode that is packed.

    Raises:
        ValueError: the dataset is damaged or empty, or the name is none.
        ConnectionError: the hub is not reached, or refuses; the message says what to do.
    """
    name, revision = parse_repository(repository)
    if revision is not None:
        raise ValueError(f"{repository} names a revision, which a push makes itself; give {name}")
    dataset = Dataset(directory)
    if not len(dataset):
        raise ValueError(f"{directory} has no episode to push; record some first")
    _check_token(name)  # before anything is packed
    with contextlib.ExitStack() as stack:
        if not is_whole_shards(dataset):
            beside = stack.enter_context(tempfile.TemporaryDirectory(prefix=".push-", dir=dataset.directory.parent))
            pack(directory, Path(beside) / "packed", shard_bytes=shard_bytes, on_episode=on_episode)
            dataset = Dataset(Path(beside) / "packed")
        files: dict[str, Path | bytes] = {
            name: dataset.directory / name for name in (DATASET_FILE, INDEX_FILE, *(s.file for s in dataset.shards))
        }
        if (dataset.directory / RECORDINGS_FILE).is_file():
            files[RECORDINGS_FILE] = dataset.directory / RECORDINGS_FILE
        files[CARD_FILE] = dataset_card(dataset, name, licence).encode()
        url = _upload(files, name, f"{len(dataset)} episodes of {dataset.spec.env_id}", private)
        return Pushed(
            repository=name,
            url=url,
            episodes=len(dataset),
            files=len(files),
            num_bytes=sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files.values()),
        )


def is_whole_shards(dataset: Dataset) -> bool:
    """Whether a dataset can be uploaded as it is: all of it in shards, and nothing else in them."""
    sizes = [sum(episode.size for episode in shard.episodes) for shard in dataset.shards]
    return sum(len(shard.episodes) for shard in dataset.shards) == len(dataset) and all(
        shard.num_bytes == size + len(end_of_tar(size)) for shard, size in zip(dataset.shards, sizes, strict=True)
    )


def _upload(files: Mapping[str, Path | bytes], name: str, message: str, private: bool) -> str:
    """Make a repository hold these files, and no shards beside them, in one commit; the commit's address."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    with hub_failures(f"the dataset could not be pushed to {name}"):
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        there = api.list_repo_files(name, repo_type="dataset")
        stale = sorted(file for file in there if file.startswith(f"{SHARDS_FOLDER}/") and file not in files)
        operations: list[Any] = [
            *(huggingface_hub.CommitOperationAdd(path_in_repo=f, path_or_fileobj=data) for f, data in files.items()),
            *(huggingface_hub.CommitOperationDelete(path_in_repo=file) for file in stale),
        ]
        return str(api.create_commit(name, operations, commit_message=message, repo_type="dataset").commit_url)


def _check_token(name: str) -> None:
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise ConnectionError(
            f"no token for the Hugging Face hub: pushing to {name} needs one that may write; "
            "log in with `hf auth login`, or set HF_TOKEN"
        )


def pull(repository: str, out: str | os.PathLike) -> Dataset:
    """Download a dataset; what an interrupted pull fetched is kept for the next one.

    Args:
        repository: `owner/name[@revision]`.
        out: the new dataset's folder, which must not be there yet.

    Raises:
        ValueError: the name is none, or what is there is damaged.
        ConnectionError: the hub is not reached, or knows no such dataset.
    """
    import huggingface_hub

    name, revision = parse_repository(repository)
    out = Path(out)
    check_new(out)
    with hub_failures(f"{repository} could not be pulled"):
        # snapshot_download itself says nothing, and gives back what an earlier pull left, if the hub is not reached.
        commit = huggingface_hub.HfApi().dataset_info(name, revision=revision).sha
    partial = out.parent / f".{out.name}.pull"
    partial.mkdir(parents=True, exist_ok=True)
    with lock_folder(partial):
        with hub_failures(f"{repository} could not be pulled"):
            huggingface_hub.snapshot_download(
                name, repo_type="dataset", revision=commit, local_dir=partial, allow_patterns=list(FILES)
            )
        if not (partial / DATASET_FILE).is_file():
            shutil.rmtree(partial)
            raise ValueError(f"the hub dataset {repository} is no farworld dataset: {DATASET_FILE} is missing")
        # Files of another revision, from an interrupted pull, are no longer named by the index.
        named = {partial / shard.file for shard in read_index(partial)}
        for path in (partial / SHARDS_FOLDER).glob("*"):
            if path not in named:
                path.unlink()
        try:
            Dataset(partial)
        except ValueError as error:
            shutil.rmtree(partial)
            raise ValueError(f"{repository} is damaged, pull it again or another revision: {error}") from error
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        (partial / EPISODES_FOLDER).mkdir(exist_ok=True)
    (partial / LOCK_FILE).unlink(missing_ok=True)
    os.rename(partial, out)
    return Dataset(out)


@contextlib.contextmanager
def hub_failures(what: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into one line."""
    try:
        yield
    except hub_errors() as error:
        advice = "check the name, the connection, and for a private one the token (`hf auth login`, or HF_TOKEN)"
        raise ConnectionError(f"{what} ({reason_of(error)}); {advice}") from error


def dataset_card(dataset: Dataset, repository: str, licence: str | None) -> str:
    """The README.md of a dataset on the hub: one that a person wrote is kept, one that was generated is made anew."""
    path = dataset.directory / CARD_FILE
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if _GENERATED not in text:
            return text
        licence = licence or (match[1] if (match := re.search(r"^license: (.+)$", text, re.MULTILINE)) else None)
    spec, name = dataset.spec, repository.rpartition("/")[2]
    num_frames = sum(dataset.num_frames(i) for i in range(len(dataset)))
    size = next((label for limit, label in _SIZES if num_frames < limit), "n>10M")
    seconds = num_frames / spec.frames_per_second
    actions = "\n".join(
        f"| {index} | `{action.name}` | {' + '.join(action.keys) or '-'} |"
        for index, action in enumerate(spec.action_vocabulary.actions)
    )
    chosen = ", ".join(f"{key or 'not said'} ({row['episodes']})" for key, row in policies(dataset).items())
    front = [
        "---",
        f"pretty_name: {json.dumps(name)}",
        *([f"license: {licence}"] if licence else []),
        f"size_categories:\n- {size}",
        "tags:\n- farworld\n- world-model\n- video\n- webdataset",
        "viewer: false",
        "---",
    ]
    return (
        "\n".join(front)
        + f"""
{_GENERATED}

# {name}

Action-video of `{spec.env_id}`, recorded with farworld: {len(dataset)} episodes, {num_frames} frames of
{spec.height}x{spec.width}, lossless, {spec.frames_per_second:g} a second ({seconds / 3600:.2f} hours).

| | |
|---|---|
| environment | `{spec.env_id}` {f"`{json.dumps(spec.env_kwargs)}`" if spec.env_kwargs else ""} |
| version | {spec.env_version} |
| policies (episodes) | {chosen} |
| action timing | `{spec.action_timing}`: action t is taken after frame t and produces frame t + 1 |

| index | action | keys |
|---|---|---|
{actions}

## Use

```python
# farworld data pull {repository} DIR
from farworld.dataset import Dataset
data = Dataset("DIR")
data.frames(0, 100, 116)  # (16, {spec.height}, {spec.width}, 3), uint8
data.actions(0)           # (T,), int64

from farworld.train.clips import StreamedClips  # or without having it on disk
clips = StreamedClips("{repository}", length=16)
```

`{SHARDS_FOLDER}/*.tar` are plain tar files in WebDataset naming, one sample an episode: `frames-0000.zst` holds frames
0 to {CHUNK_FRAMES - 1} as raw uint8 behind zstd, and so on; `actions.npy`, `rewards.npy`, `terminated.npy`,
`truncated.npy` the rest; `episode.json` says seed, policy and checksums.
"""
    )
