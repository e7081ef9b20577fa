"""What becomes of a world's pictures over a thousand frames of its own, with and without noised context.

    python benchmarks/drift.py --data DATASET --worlds plain=RUN noised=RUN [--noise 0.1] [--frames 1000] [--json]

The dataset has long episodes that no world was trained on, longer than --frames by the true start:

    farworld record --env maze --episodes 4 --frames 1008 --seed 1000 --out DATASET

Every world is rolled out from the true first frames of each episode under the episode's own keys, at its own number
of steps, with its own context noise and, if --noise is given, with those levels as well (`NAME at 0.1`). Spans of
the rollout are compared with the true frames of the same span:

- mean, std, round trip: those of the drift exam, `farworld.train.exams.drift`;
- sharpness: that of the exam, over that of the true frames;
- PSNR: to the true frame; that of other true frames is the floor, "unrelated".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from command import publish, run
from cyclopts import App, Parameter
from few_step import START_FRAMES
from torch import Tensor

from farworld.checkpoint import load_world
from farworld.console import progress_bar
from farworld.dataset import Dataset
from farworld.rollout import Rollout
from farworld.train.evaluate import check_fit, psnr
from farworld.train.exams.drift import frame_statistics, gradient
from farworld.train.exams.walks import dream, round_trip_of
from farworld.video import contact_sheet, write_png
from farworld.world_model import WorldModel

SPANS = ((0, 10), (40, 60), (90, 110), (280, 300), (580, 600), (980, 1000))
SEVERAL = Parameter(consume_multiple=True, negative=())


def statistics(world: WorldModel, drawn: Tensor, truth: Tensor) -> dict[str, float]:
    """The scores of the module's docstring; both (N, H, W, 3), uint8."""
    facts = {name: float(x.mean()) for name, x in frame_statistics(drawn, round_trip_of(world)).items()}
    sharpness = facts["sharpness"] / float(gradient(truth).mean())
    return {**facts, "sharpness": sharpness, "psnr": float(psnr(drawn, truth).mean())}


app = App(
    name="drift.py",
    version_flags=(),
    result_action="return_value",
    help="Image statistics and PSNR over long rollouts.",
)


@app.default
def drift(
    *,
    data: Annotated[Path, Parameter(help="A dataset of long episodes that no world was trained on.")],
    worlds: Annotated[tuple[str, ...], SEVERAL, Parameter(help="NAME=WORLD.")],
    noise: Annotated[tuple[float, ...], SEVERAL, Parameter(help="Context noise, beside each world's own.")] = (),
    frames: Annotated[int, Parameter(help="Frames to roll out.")] = 1000,
    episodes: Annotated[int, Parameter(help="At most.")] = 4,
    sheet: Annotated[Path | None, Parameter(help="Write a PNG: truth, then each rollout, over the spans.")] = None,
    json: Annotated[bool, Parameter(negative=(), help="Also print one JSON object, as the last line.")] = False,
) -> None:
    """Roll every world out and print its statistics, span by span."""
    spans = [(low, min(high, frames)) for low, high in SPANS if low < frames]
    if frames < 1 or episodes < 1:
        raise ValueError(f"expected --frames and --episodes of 1 or more, got {frames} and {episodes}")
    dataset = Dataset(data)
    chosen = [i for i in range(len(dataset)) if dataset.num_frames(i) >= START_FRAMES + frames][:episodes]
    if not chosen:
        raise ValueError(
            f"no episode of {data} has {START_FRAMES + frames} frames; record some with --frames, or ask for fewer"
        )
    length = START_FRAMES + frames
    truth = torch.from_numpy(np.stack([dataset.frames(i, 0, length) for i in chosen]))
    actions = np.stack([dataset.actions(i)[: length - 1] for i in chosen])
    loaded = {}
    for world in worlds:
        name, _, path = world.partition("=")
        loaded[name] = load_world(path).model
        check_fit(loaded[name], dataset)
    cases = []
    for name, world in loaded.items():
        own = world.config.context_noise
        cases += [(name, world, own), *((f"{name} at {level:g}", world, level) for level in noise if level != own)]
    true = truth[:, START_FRAMES:]
    rollouts: dict[str, Tensor] = {}
    with progress_bar("rolling out", len(cases) * len(chosen) * frames, unit="frames") as advance:
        for name, world, level in cases:
            rollout = Rollout(world, batch_size=len(chosen), context_noise=level)
            drawn = dream(rollout, truth[:, :START_FRAMES].numpy(), actions, advance=lambda count: advance(count))
            rollouts[name] = torch.from_numpy(drawn)
    rows: list[dict[str, Any]] = []
    first_world = next(iter(loaded.values()))
    for low, high in spans:
        expected = true[:, low:high].flatten(0, 1)
        facts = {**statistics(first_world, expected, expected)}
        # As far from the truth as frames of the same world that have nothing to do with it.
        facts["psnr"] = float(psnr(true.roll(frames // 2, dims=1)[:, low:high].flatten(0, 1), expected).mean())
        rows.append({"frames": f"{low + 1}–{high}", "world": "truth (PSNR: unrelated)", "noise": None, **facts})
        for name, world, level in cases:
            facts = statistics(world, rollouts[name][:, low:high].flatten(0, 1), expected)
            rows.append({"frames": f"{low + 1}–{high}", "world": name, "noise": level, **facts})
    if sheet is not None:
        shown = [high - 1 for _, high in spans]
        lines = [row[shown] for row in true[:2]] + [drawn[i][shown] for drawn in rollouts.values() for i in (0, 1)]
        write_png(sheet, contact_sheet(torch.cat(lines).numpy(), columns=len(shown)))
    print("| frames | world | context noise | mean | std | sharpness | round trip | PSNR |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        level = "" if row["noise"] is None else f"{row['noise']:g}"
        print(
            f"| {row['frames']} | {row['world']} | {level} | {row['mean']:.1f} | {row['std']:.1f} "
            f"| {row['sharpness']:.2f} | {row['round_trip']:.2f} | {row['psnr']:.2f} |"
        )
    publish(
        {"episodes": len(chosen), "steps": {name: world.config.num_steps for name, world in loaded.items()}},
        rows,
        device=first_world.device,
        json=json,
    )


if __name__ == "__main__":
    run(app)
