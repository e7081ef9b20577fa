"""Worlds out of the official FAR weights: read them safely, map them, add what they lack, write a world directory.

The weights bring a transformer and an autoencoder. What the actions mean, how large and how fast the frames are and
where to start are properties of the data sets that they were trained on, TECO's DMLab and Minecraft
(arXiv:2210.02396); they stand here. Names and shapes are the business of `farworld.models.official`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import farworld
from farworld.actions import Action, ActionVocabulary
from farworld.checkpoint import CONFIG_FILE, Context, save_world
from farworld.hub import hub_errors, reason_of
from farworld.models import official
from farworld.models.autoencoder import AutoencoderConfig
from farworld.models.far import FARConfig
from farworld.world_model import WorldConfig, WorldModel

DatasetName = Literal["minecraft", "dmlab"]

LATENT_SIZE = 8  # rows and columns, of both worlds
CONTEXT_FRAMES = 144  # of the official evaluation, which goes on to 300; training saw up to 299
NUM_STEPS = 4
NUM_STARTS = 4
START_FRAMES = 16  # the short-term window; each frame more costs an encoding at every start
CACHE_FORMAT = 1  # of converted worlds; another number converts them again


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    """What the weights of a data set do not say themselves.

    Attributes:
        transformer: the published file.
        autoencoder: the published file that goes with it.
        vocabulary: the actions; `farworld data import-teco` has the same.
        num_classes: rows of the official table, without the null class. Those beyond the vocabulary never occur in
            the data, so they are left out: no key and no agent should lead there.
        frame_size: pixels.
        frames_per_second: of the world.
        frame_action: see `WorldConfig`; the stored DMLab actions follow their frames.
        look_alike: the built-in world that the starts are recorded in, unless real frames are given.
        look_alike_actions: names of the vocabulary, to that world's names.
    """

    transformer: str
    autoencoder: str
    vocabulary: ActionVocabulary
    num_classes: int = 4
    frame_size: int
    frames_per_second: float
    frame_action: str
    look_alike: str
    look_alike_actions: dict[str, str]


DATASETS: dict[str, DatasetFacts] = {
    "minecraft": DatasetFacts(
        transformer="long_video_prediction/FAR_M_Long_Minecraft_Action128-4c041561.pth",
        autoencoder="dcae/DCAE_Minecraft_Res128-a5677f66.pth",
        vocabulary=ActionVocabulary(
            (
                Action(name="none"),  # only ever the placeholder at frame 0
                Action(name="forward", keys=("up",)),
                Action(name="yaw_left", keys=("left",)),
                Action(name="yaw_right", keys=("right",)),
            )
        ),
        frame_size=128,
        frames_per_second=20.0,
        frame_action="producing",
        look_alike="farworld/Voxel-v0",
        look_alike_actions={"forward": "forward", "yaw_left": "turn_left", "yaw_right": "turn_right"},
    ),
    "dmlab": DatasetFacts(
        transformer="long_video_prediction/FAR_B_Long_DMLab_Action64-c09441dc.pth",
        autoencoder="dcae/DCAE_DMLab_Res64-17035ae5.pth",
        vocabulary=ActionVocabulary(
            (
                Action(name="turn_left", keys=("left",)),
                Action(name="turn_right", keys=("right",)),
                Action(name="forward", keys=("up",)),
            )
        ),
        frame_size=64,
        frames_per_second=7.5,
        frame_action="following",
        look_alike="farworld/Maze-v0",
        look_alike_actions={name: name for name in ("forward", "turn_left", "turn_right")},
    ),
}


def fetch_world(dataset: str) -> Path:
    """The directory of a published world: downloaded and converted the first time, then found in the user's cache.

    Converted worlds lie where the Hugging Face hub keeps a library's assets: see HF_HOME and HF_ASSETS_CACHE.

    Args:
        dataset: "minecraft" or "dmlab".

    Raises:
        ValueError: there is no such world.
        FileNotFoundError: it is not in the cache and could not be downloaded.
    """
    repository = official.REPOSITORY
    if dataset not in DATASETS:
        raise ValueError(
            f"{repository} holds several worlds, found {dataset!r} after its name; "
            f"expected {' or '.join(f'{repository}:{name}' for name in DATASETS)}"
        )
    from huggingface_hub import cached_assets_path, hf_hub_download

    facts = DATASETS[dataset]
    hashes = [Path(name).stem.rpartition("-")[2] for name in (facts.transformer, facts.autoencoder)]
    cache = cached_assets_path("farworld", namespace=repository)
    world = cache / f"{dataset}-{'-'.join(hashes)}-v{CACHE_FORMAT}"
    if (world / CONFIG_FILE).is_file():
        return world
    try:
        weights = [Path(hf_hub_download(repository, name)) for name in (facts.transformer, facts.autoencoder)]
    except hub_errors() as error:
        raise FileNotFoundError(
            f"no world '{repository}:{dataset}': it has not been converted into {cache} yet, and {facts.transformer} "
            f"and {facts.autoencoder} could not be fetched from the Hugging Face hub ({reason_of(error)}); with both "
            f"files at hand: farworld ckpt convert FAR.pth --autoencoder DCAE.pth --actions {dataset} WORLD"
        ) from error
    with tempfile.TemporaryDirectory(dir=cache, prefix=".converting-") as folder:
        convert(dataset, weights[0], weights[1], Path(folder) / world.name)
        try:
            (Path(folder) / world.name).rename(world)
        except OSError:  # another process was faster
            if not (world / CONFIG_FILE).is_file():
                raise
    return world


def convert(
    dataset: str,
    transformer_file: Path,
    autoencoder_file: Path,
    out: Path,
    *,
    variant: str | None = None,
    context: Path | None = None,
) -> WorldModel:
    """Write a world directory from two official files, all weights in float32 and equal to the official ones.

    Args:
        dataset: what the weights were trained on, "minecraft" or "dmlab".
        transformer_file: a .pth file with a flat dictionary of tensors; its size is recognised.
        autoencoder_file: likewise, of the DC-AE.
        out: the directory to make.
        variant: a name of `official.VARIANTS` that the transformer must be; None takes any.
        context: TECO files with real frames to start from: one, or a folder. None records them in the built-in world
            that looks like the data.

    Returns:
        The world.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be, the weights don't fit together, or `out` is there already.
    """
    facts = DATASETS[dataset]
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already; give a new folder for the world")
    weights, autoencoder_weights = read_weights(transformer_file), read_weights(autoencoder_file)
    model_config = _recognise(weights, transformer_file, facts, variant)
    autoencoder_config = _recognise_autoencoder(autoencoder_weights, autoencoder_file, facts, model_config)
    state = official.far_state_dict(weights, model_config)
    kept = len(facts.vocabulary)
    table = state["action_embedding.weight"]
    state["action_embedding.weight"] = torch.cat([table[:kept], table[-1:]])
    starts = _look_alike_starts(facts) if context is None else _teco_starts(dataset, context, facts.frame_size)
    config = WorldConfig(
        name=out.resolve().name,
        model=dataclasses.replace(model_config, num_actions=kept),
        autoencoder=autoencoder_config,
        vocabulary=facts.vocabulary,
        frame_height=facts.frame_size,
        frame_width=facts.frame_size,
        frames_per_second=facts.frames_per_second,
        num_steps=NUM_STEPS,
        context_frames=CONTEXT_FRAMES,
        layout="anchored",
        frame_action=facts.frame_action,
        training={
            "converted_from": {file.name: _sha256(file) for file in (transformer_file, autoencoder_file)},
            "trained_on": f"TECO {dataset}, by the official FAR implementation",
            "starts": facts.look_alike if context is None else f"TECO {dataset}: {context.name}",
            "farworld": farworld.__version__,
            "torch": torch.__version__,
        },
    )
    with torch.device("meta"):
        world = WorldModel(config)
    world.transformer.load_state_dict(state, assign=True)
    world.autoencoder.load_state_dict(
        official.autoencoder_state_dict(autoencoder_weights, autoencoder_config), assign=True
    )
    card = _card(world, official.variant_of(model_config), dataset)
    save_world(out, config, world.transformer, world.autoencoder, starts, card, matrices=torch.float32)
    return world


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth file by name, on the CPU; a pickle that is more than tensors is refused, and not run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, wants to run something, or holds no flat dictionary of tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: expected a .pth file")
    try:
        # Mapped files are read tensor by tensor; the old format, a bare pickle, cannot be.
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damage takes any form: struct.error, BadZipFile, AssertionError, …
        # torch's own words advise to switch the protection off: they are not passed on.
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"its pickle asks for {wanted[1]}" if wanted else "it is damaged, or no file of torch.save"
        raise ValueError(
            f"{path} was refused and nothing in it was run: expected a flat dictionary of tensors, but {reason}; "
            "fetch it again from where it was published"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        found = f"a dictionary with {', '.join(map(str, list(loaded)[:3]))}, …" if isinstance(loaded, dict) else "none"
        raise ValueError(
            f"{path} must hold one flat dictionary of tensors by name, as the official weights do, found {found}; "
            "save only the model's state dict"
        )
    return loaded


def _recognise(weights: dict[str, Tensor], file: Path, facts: DatasetFacts, variant: str | None) -> FARConfig:
    try:
        config = official.recognise_far(weights, LATENT_SIZE, LATENT_SIZE)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    found = official.variant_of(config)
    if variant is not None and found != variant:
        size = f"{config.num_layers} layers, {config.num_heads} heads, context patch {config.context_patch_size}"
        raise ValueError(f"{file} must be {variant}, found {found or 'another size'} ({size})")
    if config.num_actions != facts.num_classes:
        raise ValueError(
            f"{file} must be conditioned on {facts.num_classes} classes of actions "
            f"({', '.join(facts.vocabulary.names)}), found {config.num_actions}"
        )
    return config


def _recognise_autoencoder(
    weights: dict[str, Tensor], file: Path, facts: DatasetFacts, model: FARConfig
) -> AutoencoderConfig:
    try:
        config = official.recognise_autoencoder(weights)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    needed = facts.frame_size // LATENT_SIZE
    if (config.compression, config.latent_channels) != (needed, model.latent_channels):
        raise ValueError(
            f"{file} must be a DC-AE of {needed}× compression to {model.latent_channels} channels, found "
            f"{config.compression}× to {config.latent_channels}; the published one is {facts.autoencoder}"
        )
    return config


def _look_alike_starts(facts: DatasetFacts) -> list[Context]:
    """Starts recorded in the built-in world, by walking at random."""
    import gymnasium

    import farworld.envs  # noqa: F401 - registers the worlds; only needed here

    env = gymnasium.make(facts.look_alike)
    known: ActionVocabulary = env.unwrapped.action_vocabulary  # type: ignore[attr-defined]
    starts = []
    for seed in range(NUM_STARTS):
        rng = np.random.default_rng(seed)
        names = rng.choice(list(facts.look_alike_actions), size=START_FRAMES - 1, p=[0.7, 0.15, 0.15])
        frames = [env.reset(seed=seed)[0]]
        frames += [env.step(known.index(facts.look_alike_actions[name]))[0] for name in names]
        starts.append(Context(np.stack(frames), np.array([facts.vocabulary.index(name) for name in names])))
    env.close()
    return starts


def _teco_starts(dataset: str, source: Path, frame_size: int) -> list[Context]:
    """Starts from real episodes: the first frames of the first files."""
    from farworld.dataset import Dataset
    from farworld.envs.teco import find_files, import_teco  # the command line's dependency, not the runtime's

    assert dataset in ("minecraft", "dmlab")
    with tempfile.TemporaryDirectory() as folder:
        for file in find_files(dataset, source)[:NUM_STARTS]:  # type: ignore[arg-type]
            import_teco(dataset, file, folder)  # type: ignore[arg-type]
        data = Dataset(Path(folder))
        if (data.spec.height, data.spec.width) != (frame_size, frame_size):
            raise ValueError(
                f"{source} must have frames of {frame_size}×{frame_size}, found {data.spec.height}×{data.spec.width}"
            )
        lengths = [min(START_FRAMES, data.num_frames(i)) for i in range(len(data))]
        return [Context(data.frames(i, 0, length), data.actions(i)[: length - 1]) for i, length in enumerate(lengths)]


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _card(world: WorldModel, variant: str | None, dataset: str) -> str:
    """A Hugging Face model card."""
    config = world.config
    files = "\n".join(f"- `{name}`, sha256 `{digest}`" for name, digest in config.training["converted_from"].items())
    return f"""---
library_name: farworld
license: other
license_name: see-the-original-repository
license_link: https://huggingface.co/{official.REPOSITORY}
tags: [world-model, action-conditioned-video, autoregressive, flow-matching]
---
# {config.name}

{variant or "FAR"} (arXiv:2503.19325), trained by the official FAR implementation (github.com/showlab/FAR) on TECO's
{dataset} data (arXiv:2210.02396): {config.frame_height}×{config.frame_width} pixels at
{config.frames_per_second:g} frames/s, {world.num_parameters / 1e6:.1f} M parameters with its autoencoder.

Play it: `farworld play --ckpt PATH`. Actions: {", ".join(config.vocabulary.names)}.

Converted by farworld {config.training["farworld"]} from

{files}

Such weights are published as `{official.REPOSITORY}` on the Hugging Face hub. Licence: see the original repository.

- All weights are the official ones in float32. Left out: the output of the coarse tokens, which no frame needs
  (`context_proj_out`), and rows of the action table beyond the actions that the data has.
- Frames are conditioned on the action {config.frame_action} them, and the short-term window is encoded again for every
  frame (`layout: anchored`), as in the official implementation.
- {config.context_frames} frames are remembered, as in the official evaluation, in {config.num_steps} denoising steps a
  frame (there: 50); `--context` and `--steps` take others.
- The starts are from {config.training["starts"]}.{_START_NOTES.get(config.training["starts"], "")}
"""


_BUILT_IN = """ They only look like the data: what is dreamed from them
  says little about the weights. For real starts convert with `--context`."""
_START_NOTES = {facts.look_alike: _BUILT_IN for facts in DATASETS.values()}
