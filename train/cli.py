"""`farworld train`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from farworld.play.cli import prepare_environment

Stage = Literal["autoencoder", "latents", "world", "all"]


def train(
    *,
    data: str,
    out: Path,
    preset: str | None = None,
    init: str | None = None,
    stage: Stage = "all",
    steps: int | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=(), consume_multiple=True)] = None,
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Train a world model on a recorded dataset: autoencoder, latents, FAR-Long, exported world.

    The run's folder holds checkpoints/, logs/ (TensorBoard), samples/ and, at the end, world/; it is accepted
    wherever a checkpoint is. An interrupted run goes on with --resume.

    Parameters
    ----------
    data
        The dataset's directory, as `farworld record` makes it; or a packed one elsewhere, as hf://owner/name[@revision]
        on the hub or the URL of its folder: all of it is encoded as it streams by, and a sample of its episodes is
        kept in --out for the autoencoder (--set fetched_megabytes=4096).
    out
        The run's directory.
    preset
        Model and training sizes, needed for a new run: maze-xs, maze-s, maze-m (for a GPU), voxel-xs, voxel-s, voxel-m;
        or a set-up of the FAR paper, such as far-b-long-dmlab-64 or far-l-ucf101-128; a wrong name lists them all.
    init
        A world, run or hub repository whose weights the new run begins with, its autoencoder included; sizes are the
        world's own unless --preset is given. With --set shortcut_steps=8 it learns to take few steps.
    stage
        What to do: train the autoencoder, cache latents, train the world model, or all of it.
    steps
        Steps of the autoencoder and of the world model, instead of the preset's.
    resume
        Go on with the run in --out.
    device
        Where to train; auto takes a GPU if there is one.
    settings
        field=value: set any field of the training config, as in --set checkpoint_every=10 learning_rate=5e-4.
    skip_bad
        Leave out damaged episodes instead of stopping.
    dry_run
        Only say what the world stage would take: parameters, tokens, arithmetic and memory. Nothing is written.
    json
        Print one JSON object as the last line of stdout.
    """
    prepare_environment()
    from farworld.console import print_json, stdout_to_stderr
    from farworld.dataset.fetched import open_dataset
    from farworld.train.pipeline import open_run, plan, run_stages
    from farworld.train.ranks import join_ranks

    began = time.perf_counter()
    overrides = list(settings or [])
    if steps is not None:
        if steps < 1:
            raise ValueError(f"--steps must be at least 1, got {steps}")
        overrides += [f"autoencoder_steps={steps}", f"world_steps={steps}"]
    with stdout_to_stderr() if json else contextlib.nullcontext(), join_ranks(device) as ranks:
        dataset = open_dataset(data, out / "episodes", skip_bad=skip_bad)
        choice = {"resume": resume, "data": dataset, "init": init, "ranks": ranks}
        if dry_run:
            report = plan(out, preset, overrides, **choice)
        else:
            run = open_run(out, preset, overrides, stage=stage, **choice)
            with contextlib.closing(run):
                result = run_stages(run, dataset, stage)
    if not ranks.is_first:
        return
    if dry_run:
        _print_plan(report, json)
        return
    seconds = round(time.perf_counter() - began, 1)
    if json:
        print_json({"run": str(out), **result, "bad_files": len(dataset.bad), "seconds": seconds})
        return
    left_out = f"; {len(dataset.bad)} bad files left out" if dataset.bad else ""
    print(f"{stage} done in {seconds:.0f} s -> {out}{left_out}")
    if "world" in result:
        print(
            f"one step on held-out episodes: {result['psnr'] or result['idle_psnr']:.1f} dB; "
            f"play it: farworld play --ckpt {out}"
        )


def _print_plan(report: dict[str, Any], json: bool) -> None:
    from farworld.console import print_json

    if json:
        print_json(report)
        return
    print(f"{'model parameters':<22} {report['parameters']:,}")
    print(f"{'autoencoder parameters':<22} {report['autoencoder_parameters']:,}")
    print(f"{'frames per clip':<22} {report['frames_per_clip']:.0f} on average")
    print(
        f"{'tokens per clip':<22} {report['tokens_per_clip']:,.0f} on average, {report['clips_per_step']} clips a step"
    )
    print(f"{'FLOPs per step':<22} {report['flops_per_step']:.3g} on average, each of {report['processes']} processes")
    print(f"{'memory at the peak':<22} {report['memory_bytes'] / 2**20:,.0f} MB of {report['device']}")
    print(f"{'steps':<22} autoencoder {report['autoencoder_steps']:,}, world {report['world_steps']:,}")
    print(f"{'data':<22} {report['episodes']} episodes, {report['frames']:,} frames")
