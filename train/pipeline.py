"""The stages of a run in order: autoencoder, latents, world model, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from farworld.checkpoint import World
from farworld.dataset import Dataset
from farworld.dataset.fetched import FetchedDataset
from farworld.train.autoencoder import STAGE as AUTOENCODER_STAGE
from farworld.train.autoencoder import STATISTICS, load_autoencoder, train_autoencoder
from farworld.train.config import ARCHITECTURE, PRESETS, TrainConfig, override, preset
from farworld.train.export import draw_samples, export_world
from farworld.train.initial import adopt, check_sizes, config_of, open_world
from farworld.train.latents import cache_latents
from farworld.train.ranks import Ranks
from farworld.train.run import Run
from farworld.train.view import RunView
from farworld.train.world import STAGE as WORLD_STAGE
from farworld.train.world import split_episodes, train_world, whole_average


def open_run(
    path: Path,
    preset_name: str | None,
    overrides: list[str],
    *,
    resume: bool,
    stage: str,
    data: Dataset,
    ranks: Ranks,
    init: str | None = None,
) -> Run:
    """Begin a run, with the weights of the world `init` if given, or go on with one.

    Raises:
        ValueError: the folder holds a run of this stage and `resume` is off, there is no preset to begin with,
            or the data or the weights do not fit.
    """
    stored = Run.stored_config(path)
    if stored is not None and init is not None:
        raise ValueError(f"{path} already holds a run, and --init begins one; leave it out, or choose another --out")
    world = None if init is None else open_world(init, data)
    if stored is not None and not resume and (begun := _begun_stages(path, stage)):
        raise ValueError(f"{path} already holds a run ({begun}); go on with --resume, or choose another --out")
    config = _choose_config(path, stored, preset_name, overrides, world)
    _check_data(data, config)
    ranks.wait()  # no rank may look at the folder once the first one has begun to fill it
    run = Run(path, config, ranks)
    if world is not None and ranks.is_first:
        adopt(run, world)
    ranks.wait()
    return run


def plan(
    path: Path,
    preset_name: str | None,
    overrides: list[str],
    *,
    resume: bool,
    data: Dataset,
    ranks: Ranks,
    init: str | None = None,
) -> dict[str, Any]:
    """What a run would take, JSON-ready; see `farworld.train.estimate.Estimate`. Nothing is written.

    Raises:
        ValueError: see `open_run`.
    """
    from farworld.train.estimate import estimate_world

    stored, world = Run.stored_config(path) if resume else None, None if init is None else open_world(init, data)
    config = _choose_config(path, stored, preset_name, overrides, world)
    _check_data(data, config)
    view = RunView(data, config)
    lengths = [view.num_frames(i) for i in range(len(view))]
    ranks.share(config.world_batch_size, config.accumulate)
    estimate = estimate_world(
        config, len(data.spec.action_vocabulary), ranks.device, longest=max(lengths), processes=ranks.count
    )
    return {
        "preset": config.preset,
        "device": str(ranks.device),
        "processes": ranks.count,
        **estimate.to_json(),
        "clips_per_step": config.world_batch_size,
        "autoencoder_steps": config.autoencoder_steps,
        "world_steps": config.world_steps,
        "episodes": len(data),
        "frames": sum(lengths),
    }


def _choose_config(
    path: Path, stored: TrainConfig | None, preset_name: str | None, overrides: list[str], world: World | None
) -> TrainConfig:
    """The config of a run that goes on, or of a new one, which may begin with a world's weights."""
    if stored is not None:
        if preset_name not in (None, stored.preset):
            raise ValueError(f"{path} was begun with --preset {stored.preset}, not {preset_name}; choose another --out")
        config = override(stored, overrides)
        _check_architecture(path, stored, config)
        return config
    if world is not None:
        config = config_of(world, overrides) if preset_name is None else preset(preset_name, overrides)
        check_sizes(world, config)
        return config
    if preset_name is None:
        raise ValueError(f"a new run needs --preset: {', '.join(PRESETS)}; or --init, a world to begin with")
    return preset(preset_name, overrides)


def _check_architecture(path: Path, stored: TrainConfig, config: TrainConfig) -> None:
    """Weights that are there must fit what was asked for."""
    for stage, fields in ARCHITECTURE.items():
        changed = [name for name in fields if getattr(stored, name) != getattr(config, name)]
        if changed and any((path / "checkpoints").glob(f"{stage}-*.pt")):
            raise ValueError(
                f"{path} has a trained {stage} with {changed[0]}={getattr(stored, changed[0])!r}, which --set cannot "
                f"change to {getattr(config, changed[0])!r}; begin a new run with another --out"
            )


def _begun_stages(path: Path, stage: str) -> str:
    """Names of files that say that a stage has begun, of all stages or of one."""
    names = ("autoencoder", "latents", "world") if stage == "all" else (stage,)
    found = [file.name for name in names for file in sorted((path / "checkpoints").glob(f"{name}-*.pt"))]
    if "latents" in names and stage != "all" and (path / "latents" / "progress.json").is_file():
        found.append("latents/progress.json")
    return ", ".join(found)


def _check_data(data: Dataset, config: TrainConfig) -> None:
    spec = data.spec
    if len(data) == 0:
        raise ValueError("the dataset has no episodes; record some with `farworld record`")
    if (spec.height, spec.width) != (config.frame_size, config.frame_size):
        raise ValueError(
            f"the preset {config.preset} is for frames of {config.frame_size}×{config.frame_size}, the dataset has "
            f"{spec.height}×{spec.width}; choose another preset, or record with --size {config.frame_size}"
        )
    view = RunView(data, config)
    if max(view.num_frames(i) for i in range(len(view))) < 2:
        apart = f", {config.frame_interval} apart" if config.frame_interval > 1 else ""
        raise ValueError(f"no episode of the dataset has two frames or more{apart}")
    for i in range(len(data) if config.condition == "label" else 0):
        if len(labels := set(data.actions(i).tolist())) != 1:
            raise ValueError(
                f"with condition=label all actions of an episode are its label, and {data.path(i)} has {len(labels)} "
                "different ones; set condition=action, or import labelled videos with `farworld data import-video`"
            )


def run_stages(run: Run, data: Dataset, stage: str) -> dict:
    """Run one stage, or all; what is finished already is not done again.

    Returns:
        JSON-ready: the stages' steps, and after the world stage the world's path and held-out scores.
    """
    train_episodes, held_out = split_episodes(len(data), run.config.held_out_fraction)
    device, ranks = run.ranks.device, run.ranks
    result: dict = {"stage": stage, "device": str(device), "processes": ranks.count}
    if stage in ("autoencoder", "all"):
        shown = train_episodes
        if isinstance(data, FetchedDataset):
            shown = data.sample(train_episodes, run.config.fetched_megabytes << 20, run.config.seed)
        train_autoencoder(run, data, shown, held_out)
        ranks.wait()
    view = RunView(data, run.config)
    autoencoder = load_autoencoder(run).to(device)
    statistics = run.load_checkpoint(STATISTICS)
    assert statistics is not None
    result[f"{AUTOENCODER_STAGE}_steps"] = statistics["step"]
    if stage == "autoencoder":
        return result
    latents = cache_latents(run, autoencoder, data)
    result["cached_frames"] = len(latents.latents)
    if stage == "latents":
        return result

    def sample(transformer, step: int) -> np.ndarray | None:
        return draw_samples(run, view, held_out, transformer, autoencoder, step)

    state = train_world(run, latents, view, train_episodes, sample)
    transformer = whole_average(state)
    # What is not causal makes clips, in samples/, and nobody can play it.
    if not run.config.causal or not ranks.is_first:
        return {**result, f"{WORLD_STAGE}_steps": state.step}
    assert transformer is not None
    scores = export_world(run, view, held_out, transformer, state, autoencoder, statistics)
    return {**result, f"{WORLD_STAGE}_steps": state.step, "world": str(run.world), **scores}
