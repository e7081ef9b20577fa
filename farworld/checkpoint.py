"""One directory is one world: resolve a name, a folder or a hub repository; load it strictly, save it whole."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from farworld.actions import ActionVocabulary
from farworld.models.autoencoder import AutoencoderConfig
from farworld.models.far import FARConfig, TimestepEmbedding
from farworld.world_model import WorldConfig, WorldModel

WORLD_FORMAT = "farworld-world"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
AUTOENCODER_FILE = "autoencoder.safetensors"
CONTEXTS_FILE = "contexts.safetensors"
CARD_FILE = "README.md"


@dataclass(frozen=True, slots=True)
class Context:
    """A start of a world.

    Attributes:
        frames: (F, H, W, 3), uint8.
        actions: (F − 1,), int64; action t produced frame t + 1.
    """

    frames: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True, slots=True)
class World:
    """A loaded checkpoint."""

    model: WorldModel
    contexts: list[Context]
    path: Path

    @property
    def config(self) -> WorldConfig:
        """The world's config."""
        return self.model.config


def bundled_worlds() -> list[str]:
    """Names of the worlds that come with the package."""
    folder = resources.files("farworld.assets") / "worlds"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / CONFIG_FILE).is_file())


def resolve(checkpoint: str | os.PathLike) -> Path:
    """The directory of a world.

    Args:
        checkpoint: a bundled name, a world directory, a training run's folder, or a hub repository
            `owner/name[@revision]`.

    Raises:
        FileNotFoundError: nothing is there; the message says what was looked for and where.
        ValueError: the name is of no known kind.
    """
    text = os.fspath(checkpoint)
    if text in bundled_worlds():
        return Path(str(resources.files("farworld.assets") / "worlds" / text))
    path = Path(text).expanduser()
    for folder in (path, path / "world"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    if path.is_dir():
        raise FileNotFoundError(
            f"{path} is no world: neither {path / CONFIG_FILE} nor {path / 'world' / CONFIG_FILE} is there; "
            "a training run gets its world/ folder when `farworld train` ends"
        )
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _download(text)
    nearest = difflib.get_close_matches(text, bundled_worlds(), n=1, cutoff=0.3)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(
        f"unknown world {text!r}: it is neither a bundled world ({', '.join(bundled_worlds()) or 'none'}), nor a "
        f"directory, nor a hub repository owner/name{hint}"
    )


def _download(repository: str) -> Path:
    """Fetch a world from the Hugging Face hub into its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    files = [CONFIG_FILE, MODEL_FILE, AUTOENCODER_FILE, CONTEXTS_FILE, CARD_FILE]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"no world {repository!r}: there is no folder {Path(name).absolute()}, and the Hugging Face hub "
            f"repository {name}{f' at {revision}' if revision else ''} could not be fetched ({reason}); "
            "to use a local copy give its directory: --ckpt path/to/world"
        ) from error
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"the hub repository {name} holds no farworld world: {CONFIG_FILE} is missing")
    return folder


def config_to_json(config: WorldConfig) -> dict:
    """A JSON-ready dict; `config_from_json` inverts it."""
    values = dataclasses.asdict(config)
    values["vocabulary"] = config.vocabulary.to_json()
    return {"format": WORLD_FORMAT, "version": FORMAT_VERSION, **values}


def config_from_json(values: Mapping, source: str = CONFIG_FILE) -> WorldConfig:
    """Read a config; a missing or unknown field is a ValueError that names it."""
    values = dict(values)
    kind, version = values.pop("format", None), values.pop("version", None)
    if (kind, version) != (WORLD_FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{source}: expected format {WORLD_FORMAT!r} version {FORMAT_VERSION}, got {kind!r} version {version!r}"
        )
    try:
        values["model"] = FARConfig(**values["model"])
        values["autoencoder"] = AutoencoderConfig(**values["autoencoder"])
        values["vocabulary"] = ActionVocabulary.from_json(values["vocabulary"])
        return WorldConfig(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source}: a field is missing or unknown: {error}") from error


def load_world(checkpoint: str | os.PathLike, *, device: str | torch.device = "cpu") -> World:
    """Load a world for inference, in float32.

    Args:
        checkpoint: see `resolve`.
        device: where to put the weights.

    Raises:
        FileNotFoundError: a file of the world is missing.
        ValueError: a file is damaged, or a tensor is missing, surplus or mis-shaped; the message says which.
    """
    path = resolve(checkpoint)
    for name in (MODEL_FILE, AUTOENCODER_FILE, CONTEXTS_FILE):
        if not (path / name).is_file():
            raise FileNotFoundError(f"the world {path} lacks {name}; copy or export it again")
    try:
        values = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / CONFIG_FILE} is no JSON: {error}") from error
    with torch.device("meta"):
        model = WorldModel(config_from_json(values, str(path / CONFIG_FILE)))
    model.to_empty(device="cpu")
    load_weights(model.transformer, path / MODEL_FILE)
    load_weights(model.autoencoder, path / AUTOENCODER_FILE)
    for module in model.modules():  # buffers that are computed, not stored
        if isinstance(module, TimestepEmbedding):
            module.reset_buffers()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval().requires_grad_(False).to(device)
    return World(model, load_contexts(path / CONTEXTS_FILE), path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); fetch or export it again") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy a file's tensors into a module, every one accounted for by name and shape."""
    stored, expected = _read_tensors(path), module.state_dict()
    for name, tensor in expected.items():
        if name not in stored:
            raise ValueError(f"{path} lacks the tensor {name!r} of shape {tuple(tensor.shape)}")
        if stored[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: tensor {name!r} must have shape {tuple(tensor.shape)}, found {tuple(stored[name].shape)}"
            )
    surplus = sorted(set(stored) - set(expected))
    if surplus:
        raise ValueError(f"{path} holds {len(surplus)} tensors that the model does not have, first {surplus[0]!r}")
    module.load_state_dict(stored)


def load_contexts(path: Path) -> list[Context]:
    """The start contexts of a world."""
    tensors = _read_tensors(path)
    count = len(tensors) // 2
    try:
        return [
            Context(tensors[f"frames.{i}"].numpy(), tensors[f"actions.{i}"].numpy().astype(np.int64))
            for i in range(count)
        ]
    except KeyError as error:
        raise ValueError(f"{path} lacks the tensor {error}") from error


def save_world(
    path: Path, config: WorldConfig, transformer: nn.Module, autoencoder: nn.Module, contexts: list[Context], card: str
) -> None:
    """Write a world directory, weights in float16; a reader sees the old world or the new one, never a mix.

    Raises:
        ValueError: a weight is not finite in float16.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for module, name in ((transformer, MODEL_FILE), (autoencoder, AUTOENCODER_FILE)):
        save_file({key: _to_half(key, tensor) for key, tensor in module.state_dict().items()}, temporary / name)
    tensors = {}
    for i, context in enumerate(contexts):
        tensors[f"frames.{i}"] = torch.from_numpy(np.ascontiguousarray(context.frames))
        tensors[f"actions.{i}"] = torch.from_numpy(np.ascontiguousarray(context.actions))
    save_file(tensors, temporary / CONTEXTS_FILE)
    (temporary / CONFIG_FILE).write_text(json.dumps(config_to_json(config), indent=2) + "\n", encoding="utf-8")
    (temporary / CARD_FILE).write_text(card, encoding="utf-8")
    if path.exists():
        retired = path.with_name(f".{path.name}.old")
        shutil.rmtree(retired, ignore_errors=True)
        path.rename(retired)
        temporary.rename(path)
        shutil.rmtree(retired)
    else:
        temporary.rename(path)


def _to_half(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().cpu().contiguous()
    half = tensor.detach().cpu().to(torch.float16).contiguous()
    if not torch.isfinite(half).all():
        raise ValueError(f"the tensor {name!r} is not finite in float16; the training has diverged")
    return half
