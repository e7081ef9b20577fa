"""One directory is one world: resolve a name, a folder or a hub repository; load it strictly, save it whole."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
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
from farworld.device import has_bfloat16
from farworld.hub import hub_errors, reason_of
from farworld.models import official
from farworld.models.attention import Positions
from farworld.models.autoencoder import AutoencoderConfig
from farworld.models.far import FARConfig, TimestepEmbedding
from farworld.models.packed import pack_linears
from farworld.models.packed_conv import pack_convolutions
from farworld.world_model import WorldConfig, WorldModel

WORLD_FORMAT = "farworld-world"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
AUTOENCODER_FILE = "autoencoder.safetensors"
CONTEXTS_FILE = "contexts.safetensors"
CARD_FILE = "README.md"
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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
        checkpoint: a bundled name, a world directory, a training run's folder, a hub repository
            `owner/name[@revision]`, or official weights on the hub, `guyuchao/FAR_Models:minecraft` or `:dmlab`.

    Raises:
        FileNotFoundError: nothing is there; the message says what was looked for and where.
        ValueError: the name is of no known kind.
    """
    text = os.fspath(checkpoint)
    if text in bundled_worlds():
        return Path(str(resources.files("farworld.assets") / "worlds" / text))
    path = Path(text).expanduser()
    for folder in (path, path / "world"):
        for candidate in (folder, _retired(folder)):
            if (candidate / CONFIG_FILE).is_file():
                return candidate
    if path.is_dir():
        raise FileNotFoundError(
            f"{path} is no world: neither {path / CONFIG_FILE} nor {path / 'world' / CONFIG_FILE} is there; "
            "a training run gets its world/ folder when `farworld train` ends"
        )
    if text.partition(":")[0] == official.REPOSITORY:
        from farworld.official_worlds import fetch_world  # which needs this module

        return fetch_world(text.partition(":")[2])
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _download(text)
    nearest = difflib.get_close_matches(text, bundled_worlds(), n=1, cutoff=0.3)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(
        f"unknown world {text!r}: it is neither a bundled world ({', '.join(bundled_worlds()) or 'none'}), nor a "
        f"directory, nor a hub repository owner/name{hint}"
    )


def _retired(path: Path) -> Path:
    """Where `save_world` keeps the old world until the new one is in place; whoever dies in between leaves it there."""
    return path.parent / f".{path.name}.old"


def _download(repository: str) -> Path:
    """Fetch a world from the Hugging Face hub into its cache."""
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    files = [CONFIG_FILE, MODEL_FILE, AUTOENCODER_FILE, CONTEXTS_FILE, CARD_FILE]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
    except hub_errors() as error:
        raise FileNotFoundError(
            f"no world {repository!r}: there is no folder {Path(name).absolute()}, and the Hugging Face hub "
            f"repository {name}{f' at {revision}' if revision else ''} could not be fetched ({reason_of(error)}); "
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
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: expected a JSON object, got {type(values).__name__}; fetch or export it again")
    values = dict(values)
    kind, version = values.pop("format", None), values.pop("version", None)
    if (kind, version) != (WORLD_FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{source}: expected format {WORLD_FORMAT!r} version {FORMAT_VERSION}, got {kind!r} version {version!r}"
        )
    try:
        model = dict(values["model"])
        model["positions"] = Positions(**model.get("positions", {}))
        values["model"] = FARConfig(**model)
        values["autoencoder"] = AutoencoderConfig(**values["autoencoder"])
        values["vocabulary"] = ActionVocabulary.from_json(values["vocabulary"])
        return WorldConfig(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source}: a field is missing or unknown: {error}") from error


def load_world(checkpoint: str | os.PathLike, *, device: str | torch.device = "cpu") -> World:
    """Load a world for inference, in float32; on a CPU with packed weights (`farworld.models.packed`, `packed_conv`).

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
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path / CONFIG_FILE} is no JSON: {error}") from error
    config = config_from_json(values, str(path / CONFIG_FILE))
    with torch.device("meta"):
        model = WorldModel(config)
    model.to_empty(device="cpu")
    load_weights(model.transformer, path / MODEL_FILE)
    load_weights(model.autoencoder, path / AUTOENCODER_FILE)
    for module in model.modules():  # buffers that are computed, not stored
        if isinstance(module, TimestepEmbedding):
            module.reset_buffers()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval().requires_grad_(False).to(device)
    if model.device.type == "cpu":
        pack_linears(model)
        dtype = torch.bfloat16 if has_bfloat16(model.device) else torch.float32
        pack_convolutions(model.autoencoder, config.frame_height, config.frame_width, decoder_dtype=dtype)
    return World(model, load_contexts(path / CONTEXTS_FILE, config), path)


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


def load_contexts(path: Path, config: WorldConfig) -> list[Context]:
    """The start contexts of a world, every tensor accounted for by name, shape and type.

    Raises:
        ValueError: a tensor is missing, surplus or not what the config says; the message says which.
    """
    tensors = _read_tensors(path)
    matches = {name: re.fullmatch(r"(?:frames|actions)\.([0-9]+)", name) for name in tensors}
    surplus = sorted(name for name, match in matches.items() if not match)
    if surplus:
        raise ValueError(f"{path} holds the tensor {surplus[0]!r}; expected frames.0, actions.0, frames.1, …")
    count = max((int(match[1]) + 1 for match in matches.values() if match), default=0)
    return [_read_context(path, tensors, i, config) for i in range(count)]


def _read_context(path: Path, tensors: Mapping[str, Tensor], index: int, config: WorldConfig) -> Context:
    for name in (f"frames.{index}", f"actions.{index}"):
        if name not in tensors:
            raise ValueError(f"{path} lacks the tensor {name!r}; fetch or export it again")
    frames, actions = tensors[f"frames.{index}"], tensors[f"actions.{index}"]
    size = (config.frame_height, config.frame_width, 3)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != size or len(frames) < 1:
        raise ValueError(
            f"{path}: tensor 'frames.{index}' must be uint8 of shape (1 or more,) + {size}, found {_describe(frames)}"
        )
    if actions.dtype not in INTEGERS or tuple(actions.shape) != (len(frames) - 1,):
        raise ValueError(
            f"{path}: tensor 'actions.{index}' must be integers of shape ({len(frames) - 1},), one fewer than its "
            f"frames, found {_describe(actions)}"
        )
    last = len(config.vocabulary) - 1
    if actions.numel() and not 0 <= int(actions.min()) <= int(actions.max()) <= last:
        raise ValueError(
            f"{path}: tensor 'actions.{index}' must be in [0, {last}], the vocabulary's range, "
            f"found {int(actions.min())} to {int(actions.max())}"
        )
    return Context(frames.numpy(), actions.numpy().astype(np.int64))


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def save_world(
    path: Path,
    config: WorldConfig,
    transformer: nn.Module,
    autoencoder: nn.Module,
    contexts: list[Context],
    card: str,
    *,
    matrices: torch.dtype = torch.float16,
) -> None:
    """Write a world directory, by default with matrices in float16.

    Whenever the writer dies, the old world or the new one is there complete: `resolve` finds it.

    Raises:
        ValueError: a weight is not finite, or beyond the type of matrices.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for module, name in ((transformer, MODEL_FILE), (autoencoder, AUTOENCODER_FILE)):
        tensors = {key: _to_store(key, tensor, matrices) for key, tensor in module.state_dict().items()}
        save_file(tensors, temporary / name)
    tensors = {}
    for i, context in enumerate(contexts):
        # Copies: starts may be slices of one episode, and safetensors refuses tensors that share memory.
        tensors[f"frames.{i}"] = torch.from_numpy(np.array(context.frames, order="C"))
        tensors[f"actions.{i}"] = torch.from_numpy(np.array(context.actions, order="C"))
    save_file(tensors, temporary / CONTEXTS_FILE)
    (temporary / CONFIG_FILE).write_text(json.dumps(config_to_json(config), indent=2) + "\n", encoding="utf-8")
    (temporary / CARD_FILE).write_text(card, encoding="utf-8")
    retired = _retired(path)
    if path.exists():
        shutil.rmtree(retired, ignore_errors=True)
        path.rename(retired)
    temporary.rename(path)
    shutil.rmtree(retired, ignore_errors=True)


def _to_store(name: str, tensor: Tensor, matrices: torch.dtype) -> Tensor:
    """Matrices and convolutions as asked; vectors are small, and batch-norm variances outgrow float16."""
    tensor = tensor.detach().cpu().contiguous()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"the tensor {name!r} is not finite; the training has diverged")
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    stored = tensor.to(matrices)
    if not torch.isfinite(stored).all():
        kind = str(matrices).removeprefix("torch.")
        raise ValueError(f"the tensor {name!r} has values beyond {kind}, up to {tensor.abs().max():.3g}")
    return stored
