"""What few denoising steps a frame cost in quality: shortcut forcing against plain Euler steps.

    python benchmarks/few_step.py --out DIR [--data DATASET] [--preset maze-xs] [--updates 1200] [--json]
    python benchmarks/few_step.py --data DATASET --worlds plain=RUN shortcut=RUN [--json]

The first form records maze episodes (unless --data names a dataset) and trains a plain world of the preset. Two runs
go on from its weights: one as before, one with shortcut forcing. They cost the same: a bootstrapped clip needs two
more passes forward, so that the second one gets fewer updates (`steps_of_same_cost`); the processor seconds that both
took are printed. What is there already in DIR is gone on with. The second form only measures worlds.

Held-out episodes, each world at each number of steps, several seeds of the noise:

- next frame: every frame predicted from its true past;
- rollout: the frames after a true start, under the true actions, each from what was predicted before.

Scores, over the frames that differ from the one before:

- energy: the energy score in grey levels, E|X − y| − ½ E|X − X'| with |·| the root mean square over a frame, X and X'
  drawn from the model with different noise, y the truth. It is a proper score: lowest for the true distribution, so
  that neither a blurred mean nor a sharp wrong guess pays. This is what few steps should be judged by;
- PSNR: of single draws, in dB; highest for the mean of all futures, however blurred, and so no measure of steps;
- LPIPS: of single draws, lower is better; left out where frames are too small for it;
- sharpness: mean gradient of the drawn frames over that of the true ones; 1 is right;
- to many: root mean square distance in grey levels from the same world's frame in --many steps from the same noise.

"new" is the same over the third of the frames that differ most from the frame before, where most is revealed.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from command import publish, run
from cyclopts import App, Parameter
from torch import Tensor

from farworld.checkpoint import load_world
from farworld.console import progress_bar
from farworld.dataset import Dataset
from farworld.device import choose_device
from farworld.rollout import Rollout
from farworld.train.config import PRESETS, TrainConfig, override
from farworld.train.evaluate import check_fit, psnr
from farworld.train.exams.drift import gradient
from farworld.train.lpips import SMALLEST, load_lpips
from farworld.train.world import split_episodes
from farworld.world_model import WorldModel

RECORD = ("--env", "maze", "--episodes", "160", "--frames", "100", "--seed", "7")
HELD_OUT_FRACTION = 0.06
START_FRAMES = 8  # true frames before a rollout; the next-frame scores leave them out as well
SHORTCUT_STEPS = 8  # of the finest step size
LEARNING_RATE_SHARE = 0.5  # of the preset's, for what goes on from trained weights
TRAINING_PASSES = 3.0  # forward and backward, in passes forward
LPIPS_BATCH = 64  # images
SEVERAL = Parameter(consume_multiple=True, negative=())

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]


def steps_of_same_cost(plain: TrainConfig, shortcut: TrainConfig) -> int:
    """Updates of the second config that cost what all updates of the first one do, in passes of the model."""

    def passes(config: TrainConfig) -> float:
        late = config.world_steps - config.decay_start(config.world_steps)
        own = late / config.world_steps if config.own_context_ratio else 0.0
        return TRAINING_PASSES + own + (2 * config.bootstrap_ratio if config.shortcut_steps else 0.0)

    return round(plain.world_steps * passes(plain) / passes(shortcut))


def farworld(*arguments: str) -> float:
    """Run a farworld command; the processor seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "farworld", *arguments], check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train_all(out: Path, data: Path, preset: str, settings: list[str], updates: int) -> dict[str, dict[str, Any]]:
    """Train the start and what goes on from it; the facts of the two worlds to compare.

    Args:
        out: where to put the runs; finished ones stay.
        data: the dataset's directory.
        preset: of all runs.
        settings: field=value, for all runs.
        updates: of the plain world, beyond the start's.
    """
    common = [*settings, f"held_out_fraction={HELD_OUT_FRACTION}"]
    start = out / "start"
    if not (start / "world").is_dir():
        begun = ["--resume"] if (start / "run.json").is_file() else ["--preset", preset, "--set", *common]
        farworld("train", "--data", f"{data}", "--out", f"{start}", *begun)
    on = [f"world_steps={updates}", f"learning_rate={LEARNING_RATE_SHARE * PRESETS[preset].learning_rate}"]
    plain = override(PRESETS[preset], [*common, *on])
    shortcut = override(plain, [f"shortcut_steps={SHORTCUT_STEPS}"])
    facts = {}
    for name, config in (("plain", plain), ("shortcut", shortcut)):
        steps = steps_of_same_cost(plain, config)
        told = [*on[1:], f"world_steps={steps}", f"shortcut_steps={config.shortcut_steps}"]
        run = out / name
        if not (run / "run.json").is_file():
            farworld(
                "train",
                "--data",
                f"{data}",
                "--out",
                f"{run}",
                "--init",
                f"{start}",
                "--stage",
                "latents",
                "--set",
                *told,
            )
        seconds = farworld("train", "--data", f"{data}", "--out", f"{run}", "--resume", "--stage", "world")
        facts[name] = {"updates": steps, "cpu_seconds": round(seconds)}
    return facts


def next_frames(
    world: WorldModel, frames: Tensor, actions: np.ndarray, *, num_steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Every frame behind the start from its true past.

    Args:
        world: what predicts.
        frames: (B, T, H, W, 3), uint8.
        actions: (B, T − 1).
        num_steps: denoising steps.
        seed: of the noise.

    Returns:
        Predicted and true frames, each (N, H, W, 3), uint8, in the same order for all seeds.
    """
    rollout = Rollout(world, batch_size=len(frames), num_steps=num_steps, context_frames=frames.shape[1])
    rollout.prime(frames[:, :START_FRAMES], actions[:, : START_FRAMES - 1], seed=seed)
    predicted = [
        torch.from_numpy(rollout.decode(rollout.peek_then_observe(actions[:, t - 1], frames[:, t])))
        for t in range(START_FRAMES, frames.shape[1])
    ]
    return torch.stack(predicted, dim=1).flatten(0, 1), frames[:, START_FRAMES:].flatten(0, 1)


def rolled_out(
    world: WorldModel, frames: Tensor, actions: np.ndarray, *, num_steps: int, seed: int, num_frames: int
) -> tuple[Tensor, Tensor]:
    """Rollouts from several starts of each episode; as `next_frames`, num_frames from each start."""
    starts = range(0, frames.shape[1] - START_FRAMES - num_frames + 1, START_FRAMES + num_frames)
    clips = torch.cat([frames[:, s : s + START_FRAMES + num_frames] for s in starts])
    keys = np.concatenate([actions[:, s : s + START_FRAMES + num_frames - 1] for s in starts])
    rollout = Rollout(world, batch_size=len(clips), num_steps=num_steps, context_frames=clips.shape[1])
    rollout.prime(clips[:, :START_FRAMES], keys[:, : START_FRAMES - 1], seed=seed)
    predicted = [torch.from_numpy(rollout.step(keys[:, t])) for t in range(START_FRAMES - 1, keys.shape[1])]
    return torch.stack(predicted, dim=1).flatten(0, 1), clips[:, START_FRAMES:].flatten(0, 1)


def energy_score(drawn: Tensor, truth: Tensor) -> Tensor:
    """The energy score of several draws in each frame's root mean square distance, (N,); the lower the better.

    Args:
        drawn: (S, N, …), at least two draws from the same distribution.
        truth: (N, …).
    """

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one.float() - other.float()).flatten(1).square().mean(dim=1).sqrt()

    if len(drawn) < 2:
        raise ValueError(f"the energy score needs at least two draws, got {len(drawn)}")
    error = torch.stack([distance(draw, truth) for draw in drawn]).mean(dim=0)
    pairs = [distance(drawn[i], drawn[j]) for i in range(len(drawn)) for j in range(i)]
    return error - torch.stack(pairs).mean(dim=0) / 2


def scores(drawn: Tensor, truth: Tensor, many: Tensor, perceptual: PerceptualDistance | None) -> dict[str, Tensor]:
    """The scores of the module's docstring for each frame, (N,); drawn and many are (S, N, H, W, 3), uint8."""
    result = {
        "energy": energy_score(drawn, truth),
        "psnr": torch.stack([psnr(draw, truth) for draw in drawn]).mean(dim=0),
        "gradient": torch.stack([gradient(draw) for draw in drawn]).mean(dim=0),
        "true_gradient": gradient(truth),
        "to_many": (drawn.float() - many.float()).square().mean(dim=(2, 3, 4)).sqrt().mean(dim=0),
    }
    if perceptual is not None:
        result["lpips"] = torch.stack([perceptual(draw, truth) for draw in drawn]).mean(dim=0)
    return result


def summary(rows: dict[str, Tensor], chosen: Tensor) -> dict[str, float]:
    """Means over the chosen frames, (N,), bool."""
    means = {name: float(values[chosen].mean()) for name, values in rows.items()}
    means["sharpness"] = means.pop("gradient") / means.pop("true_gradient")
    return means


def perceptual_distance(size: int) -> PerceptualDistance | None:
    """LPIPS of frames (N, H, W, 3), uint8, or None where they are too small for it."""
    if size < SMALLEST:
        return None
    model = load_lpips()

    @torch.inference_mode()
    def distance(frames: Tensor, references: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(frames), LPIPS_BATCH):
            images, others = (
                x[start : start + LPIPS_BATCH].permute(0, 3, 1, 2).float() / 255 for x in (frames, references)
            )
            parts.append(model(images, others, unit_range=True))
        return torch.cat(parts)

    return distance


def measure(
    worlds: dict[str, WorldModel],
    data: Dataset,
    episodes: list[int],
    *,
    steps: Sequence[int],
    many: int,
    seeds: int,
    num_frames: int,
    length: int,
) -> list[dict[str, Any]]:
    """Rows of the table: each kind of prediction, world and number of steps."""
    perceptual, rows = perceptual_distance(min(data.spec.height, data.spec.width)), []
    frames = torch.from_numpy(np.stack([data.frames(i, 0, length) for i in episodes]))
    actions = np.stack([data.actions(i)[: length - 1] for i in episodes])
    kinds: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "next frame": next_frames,
        "rollout": lambda *args, **kwargs: rolled_out(*args, **kwargs, num_frames=num_frames),
    }
    with progress_bar("measuring", len(kinds) * len(worlds) * (len(steps) + 1) * seeds, unit="passes") as advance:
        for kind, predict in kinds.items():
            # The frame before, in the order in which frames are predicted.
            shifted = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
            for name, world in worlds.items():
                drawn: dict[int, Tensor] = {}
                truth = torch.empty(0)
                for num_steps in dict.fromkeys([many, *steps]):
                    draws = []
                    for seed in range(seeds):
                        predicted, truth = predict(world, frames, actions, num_steps=num_steps, seed=seed)
                        draws.append(predicted)
                        advance()
                    drawn[num_steps] = torch.stack(draws)
                before = _before(kind, shifted, num_frames)
                change = (truth.float() - before.float()).flatten(1).square().mean(dim=1)
                moving = change > 0
                new = change >= change[moving].quantile(2 / 3)
                for num_steps in steps:
                    each = scores(drawn[num_steps], truth, drawn[many], perceptual)
                    all_frames, new_frames = summary(each, moving), summary(each, new)
                    rows.append(
                        {
                            "kind": kind,
                            "world": name,
                            "steps": num_steps,
                            "frames": int(moving.sum()),
                            **all_frames,
                            **{f"new_{score}": value for score, value in new_frames.items()},
                        }  # fmt: skip
                    )
    return rows


def _before(kind: str, shifted: Tensor, num_frames: int) -> Tensor:
    """The frame before each predicted one, (N, H, W, 3)."""
    if kind == "next frame":
        return shifted[:, START_FRAMES:].flatten(0, 1)
    span = START_FRAMES + num_frames
    starts = range(0, shifted.shape[1] - span + 1, span)
    return torch.cat([shifted[:, s + START_FRAMES : s + span] for s in starts]).flatten(0, 1)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    names = [n for n in ("energy", "lpips", "psnr", "sharpness", "to_many", "new_energy", "new_lpips") if n in rows[0]]
    print("| prediction | steps | world | " + " | ".join(name.replace("_", " ") for name in names) + " |")
    print("|---" * (3 + len(names)) + "|")
    for row in sorted(rows, key=lambda row: (row["kind"], row["steps"])):
        values = (f"{row[name]:.3f}" if "lpips" in name else f"{row[name]:.2f}" for name in names)
        print(f"| {row['kind']} | {row['steps']} | {row['world']} | " + " | ".join(values) + " |")


app = App(
    name="few_step.py",
    version_flags=(),
    result_action="return_value",
    help="Shortcut forcing against plain Euler steps, at few steps a frame.",
)


@app.default
def few_step(
    *,
    out: Annotated[Path | None, Parameter(help="Where to train.")] = None,
    data: Annotated[Path | None, Parameter(help="A recorded dataset; without it one is recorded into --out.")] = None,
    worlds: Annotated[tuple[str, ...], SEVERAL, Parameter(help="NAME=WORLD: measure these instead.")] = (),
    preset: Annotated[str, Parameter(help="Of the training.")] = "maze-xs",
    updates: Annotated[int, Parameter(help="Of the plain world, beyond those of the start.")] = 1200,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative=())] = (),
    steps: Annotated[tuple[int, ...], SEVERAL, Parameter(help="Denoising steps a frame.")] = (1, 2, 4),
    many: Annotated[int, Parameter(help="Steps that count as many.")] = 32,
    seeds: Annotated[int, Parameter(help="Of the noise, at least 2.")] = 4,
    frames: Annotated[int, Parameter(help="Frames of a rollout.")] = 16,
    episodes: Annotated[int, Parameter(help="Held-out episodes, at most.")] = 10,
    json: Annotated[bool, Parameter(negative=(), help="Also print one JSON object, as the last line.")] = False,
) -> None:
    """Train worlds unless some are named, then measure them."""
    if seeds < 2 or min(*steps, many, frames, episodes, updates) < 1:
        raise ValueError(
            "expected --seeds of 2 or more, and --steps, --many, --frames, --episodes and --updates of 1 or more"
        )
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}, known are {', '.join(PRESETS)}")
    if worlds and data is None:
        raise ValueError("--worlds are measured on recorded episodes: name a dataset with --data")
    facts: dict[str, dict[str, Any]] = {}
    paths = dict(world.partition("=")[::2] for world in worlds)
    if not worlds:
        if out is None:
            raise ValueError("name a folder to train in with --out, or trained worlds with --worlds")
        if data is None:
            data = out / "data"
            if not data.is_dir():
                farworld("record", *RECORD, "--out", f"{data}")
        facts = train_all(out, data, preset, list(settings), updates)
        paths = {name: str(out / name) for name in facts}
    assert data is not None
    dataset, device = Dataset(data), choose_device("cpu")
    loaded = {name: load_world(path, device=device).model for name, path in paths.items()}
    for world in loaded.values():
        check_fit(world, dataset)
    _, held_out = split_episodes(len(dataset), HELD_OUT_FRACTION)
    held_out = held_out[:episodes]
    length = min(dataset.num_frames(i) for i in held_out)
    if length < START_FRAMES + frames:
        raise ValueError(f"held-out episodes must have {START_FRAMES + frames} frames or more, found {length}")
    rows = measure(loaded, dataset, held_out, steps=steps, many=many, seeds=seeds, num_frames=frames, length=length)
    print_table(rows)
    publish(
        {
            "episodes": len(held_out),
            "seeds": seeds,
            "rollout_frames": frames,
            "many": many,
            "training": facts,
            "parameters": {name: world.num_parameters for name, world in loaded.items()},
        },
        rows,
        device=device,
        json=json,
    )


if __name__ == "__main__":
    run(app)
