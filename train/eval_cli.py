"""`farworld eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from farworld.train.exams import EXAMS

evaluation = App(name="eval", help="Measure how good a world model is on recorded episodes that it was not trained on.")
for _name, _help in EXAMS.items():
    evaluation.command(f"farworld.train.exams.cli:{_name.replace('-', '_')}", name=_name, help=_help)


@evaluation.default
def evaluate(
    *,
    ckpt: str,
    data: Path,
    one_step: Annotated[bool, Parameter(negative=())] = False,
    shuffle_actions: Annotated[bool, Parameter(negative=())] = False,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure a world model on recorded episodes that it was not trained on.

    Parameters
    ----------
    ckpt
        A bundled world, a world or run directory, or a hub repository owner/name.
    data
        A dataset of the same environment, recorded with another seed.
    one_step
        Predict every frame from the true past. The only protocol so far.
    shuffle_actions
        Permute the actions of each episode at random: a model that heeds them must get worse.
    episodes
        How many episodes, from the first on; all by default.
    steps
        Denoising steps a frame; the world's own number by default.
    seed
        Of the noise and the permutation.
    device
        Where to run.
    skip_bad
        Leave out damaged episodes instead of stopping.
    json
        Print one JSON object as the last line of stdout.
    """
    from rich.console import Console
    from rich.table import Table

    from farworld.checkpoint import load_world
    from farworld.console import print_json, progress_bar
    from farworld.dataset import Dataset
    from farworld.device import choose_device
    from farworld.train.evaluate import one_step as evaluate_one_step

    if not one_step:
        raise ValueError("say what to measure: --one-step is the only protocol so far")
    if episodes is not None and episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {episodes}")
    world = load_world(ckpt, device=choose_device(device)).model
    dataset = Dataset(data, skip_bad=skip_bad)
    chosen = list(range(min(len(dataset), episodes or len(dataset))))
    total = sum(dataset.num_frames(i) - 1 for i in chosen)
    with progress_bar("one step", total, unit="frames") as advance:
        scores = evaluate_one_step(
            world, dataset, chosen, num_steps=steps, shuffle_actions=shuffle_actions, seed=seed, advance=advance
        )
    if json:
        print_json(scores)
        return
    table = Table(title=f"{ckpt}: one step from the true past", show_header=False)
    for name, value in scores.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
