"""What the studies of the paper's claims share: the data, small trainings, scored predictions, and the report.

A study trains a few variants of one small model alike, on latents of an autoencoder that is a bundled world's and stays
as it is, and lets them predict the same held-out clips. The training is the paper's (clean context 10 %, logit-normal
timesteps, a constant learning rate, no copy gate, no own predictions as context, clips of uniform lengths); size, data
and the number of steps are not. Long short-term models have the sliding layout, in which all windows are learnt from
the same number of frames (see `farworld.models.attention.visible`); in the paper's the window is what is learnt from.

Every training is a folder of DIR/runs with the weights that it had on its way; what is finished is not trained again,
and what was interrupted goes on. Studies that share a variant share its run: give them one --out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_format
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import App, CycloptsError, Parameter
from torch import Tensor

from farworld.bench import commit_of_checkout
from farworld.checkpoint import World, load_world
from farworld.console import progress_bar
from farworld.dataset import Dataset
from farworld.device import choose_device, describe_hardware
from farworld.models.attention import Positions
from farworld.models.far import FAR
from farworld.rollout import Rollout
from farworld.train.config import TrainConfig, override
from farworld.train.evaluate import check_fit
from farworld.train.export import assemble
from farworld.train.frechet import ClipFeatures, frechet_distance
from farworld.train.initial import config_of
from farworld.train.latents import LatentDataset, cache_latents
from farworld.train.lpips import load_lpips
from farworld.train.prediction import Instruments, Scores, frame_scores, standard_error
from farworld.train.ranks import Ranks
from farworld.train.run import Run
from farworld.train.view import RunView
from farworld.train.world import split_episodes, train_world
from farworld.video import contact_sheet, write_png
from farworld.world_model import WorldModel

AUTOENCODER = "dmlab"  # the world whose autoencoder all models have
RECORD = ("--env", "maze", "--env-arg", "actions=walk", "--seed", "20261126")
PAPER = (
    "copy_gate=False", "own_context_ratio=0.0", "pure_noise_ratio=0.0", "idle_ratio=0.0", "clean_context_ratio=0.1",
    "clip_lengths=uniform", "decay_fraction=0.0",
)  # fmt: skip
STREAMS = 32  # that are rolled out together
SHEET_CLIPS, SHEET_FRAMES = 3, 8
RESAMPLES = 100  # of the episodes, for the error of a Fréchet distance
CLEAR = 2.0  # standard errors from which on a difference counts
SCORES = {"psnr": "PSNR, dB", "lpips": "LPIPS"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How large a study is. Lengths in frames."""

    episodes: int  # recorded, if no data is named
    frames: int  # of each
    held_out: int  # episodes
    settings: tuple[str, ...]  # of all trainings
    steps: int  # of each training
    snapshots: int  # of the weights on the way, evenly spaced
    clip: int  # of a short model's training; fine frames of a long one's clips
    long_clip: int  # longest of a long model's training
    window: int  # of long models, where it is not what is varied
    windows: tuple[int, ...]
    coarseness: tuple[int, ...]  # side of a coarse patch in fine ones
    lengths: tuple[int, ...]  # of what a short model is shown, in lengths of its training
    starts: int  # clips of a held-out episode
    predict: int  # after what is shown
    contexts: tuple[int, ...]  # that are counted and timed without training
    denoising_steps: int = 4


SCALES = {
    "small": Scale(
        episodes=112, frames=264, held_out=24,
        settings=("num_layers=4", "num_heads=4", "world_batch_size=8", "warmup_steps=60"),
        steps=960, snapshots=4, clip=16, long_clip=40, window=4, windows=(1, 2, 4, 8, 16), coarseness=(1, 2, 4),
        lengths=(1, 2, 4, 8, 16), starts=4, predict=8, contexts=(16, 32, 64, 128, 256),
    ),
    "tiny": Scale(
        episodes=5, frames=24, held_out=3,
        settings=("num_layers=2", "num_heads=1", "head_size=16", "world_batch_size=2", "warmup_steps=1"),
        steps=2, snapshots=2, clip=4, long_clip=8, window=2, windows=(1, 2, 4), coarseness=(1, 4), lengths=(1, 4),
        starts=1, predict=2, contexts=(16, 48), denoising_steps=1,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clips:
    """Held-out clips, as models see them and as they are."""

    frames: np.ndarray  # (N, F, H, W, 3), uint8
    latents: Tensor  # (N, F, C, h, w), float32, scaled
    actions: Tensor  # (N, F), int64, the action that produced each frame; the null action for the first
    episodes: np.ndarray  # (N,)

    @property
    def length(self) -> int:
        """F."""
        return self.frames.shape[1]

    def part(self, chosen: slice | np.ndarray) -> Clips:
        """Some of the clips."""
        index = np.arange(len(self.frames))[chosen]
        return Clips(self.frames[index], self.latents[index], self.actions[index], self.episodes[index])

    def first(self, length: int) -> Clips:
        """The beginnings of the clips."""
        return Clips(self.frames[:, :length], self.latents[:, :length], self.actions[:, :length], self.episodes)

    def last(self, length: int) -> Clips:
        """Their ends, as streams that begin there."""
        actions = self.actions[:, -length:].clone()
        actions[:, 0] = self.actions[:, 0]  # the null action
        return Clips(self.frames[:, -length:], self.latents[:, -length:], actions, self.episodes)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where a study lives, how large it is, and what it is made of."""

    out: Path
    scale: Scale
    data_path: Path | None = None
    seeds: int = 1  # trainings of each variant
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def data(self) -> Dataset:
        """The recorded episodes; without a dataset some are recorded."""
        path = self.data_path or self.out / "data"
        if self.data_path is None and not (path / "dataset.json").is_file():
            counts = ("--episodes", f"{self.scale.episodes}", "--frames", f"{self.scale.frames}")
            farworld("record", *RECORD, *counts, "--out", f"{path}")
        data = Dataset(path)
        check_fit(self._start.model, data)
        if len(data) <= self.scale.held_out:
            raise ValueError(f"{self.scale.held_out} episodes are held out, the dataset has {len(data)}; record more")
        mark = self.out / "data.txt"
        if mark.is_file() and mark.read_text(encoding="utf-8") != data.fingerprint:
            raise ValueError(f"the runs in {self.out} were trained on other data than {path}; choose another --out")
        mark.write_text(data.fingerprint, encoding="utf-8")
        return data

    @cached_property
    def _start(self) -> World:
        return load_world(AUTOENCODER, device=self.device)

    @cached_property
    def instruments(self) -> Instruments:
        """What scores."""
        return Instruments(device=self.device, lpips=load_lpips(self.device))

    def config(self, *settings: str, seed: int = 0) -> TrainConfig:
        """The training of one variant."""
        scale = self.scale
        every = max(1, scale.steps // scale.snapshots)
        rhythm = (f"world_steps={scale.steps}", f"sample_every={every}", f"checkpoint_every={every}", f"seed={seed}")
        return override(config_of(self._start, list(PAPER)), [*scale.settings, *rhythm, *settings])

    def short(self, *settings: str) -> tuple[str, ...]:
        """Settings of a model without a long-term stream, trained on the scale's clips."""
        names = ("short_term_frames", "fine_frames", "early_clip_frames", "max_clip_frames", "context_frames")
        return ("context_patch_size=None", *(f"{name}={self.scale.clip}" for name in names), *settings)

    def long(self, *, window: int, coarseness: int) -> tuple[str, ...]:
        """Settings of a long short-term model, trained on the scale's longer clips, half as many a step."""
        long_clip, usual = self.scale.long_clip, self.config()
        return (
            f"context_patch_size={coarseness * usual.patch_size}", f"short_term_frames={window}",
            f"fine_frames={self.scale.clip}", f"early_clip_frames={long_clip}", f"max_clip_frames={long_clip}",
            f"context_frames={long_clip}", f"world_batch_size={usual.world_batch_size // 2}",
        )  # fmt: skip

    @property
    def split(self) -> tuple[list[int], list[int]]:
        """Episodes to train on, and those that are held out."""
        return split_episodes(len(self.data), self.scale.held_out / len(self.data))

    @contextlib.contextmanager
    def _opened(self, path: Path, config: TrainConfig) -> Iterator[Run]:
        stored = Run.stored_config(path)
        if stored not in (None, config):
            raise ValueError(f"{path} was trained with other settings; choose another --out")
        run = Run(path, config, Ranks(device=self.device))
        run.latents = self.out / "latents"  # one cache for all
        run.latents.mkdir(exist_ok=True)
        try:
            yield run
        finally:
            run.close()

    def _latents(self, run: Run) -> LatentDataset:
        return cache_latents(run, self._start.model.autoencoder, self.data)

    @cached_property
    def latents(self) -> LatentDataset:
        """Of all episodes."""
        with self._opened(self.out / "runs" / "latents", config_of(self._start, [])) as run:
            return self._latents(run)

    def train(self, name: str, settings: Sequence[str], *, seed: int = 0) -> dict[int, WorldModel]:
        """A variant's world at each snapshot, by the step; trained unless that is done.

        Raises:
            ValueError: there is a run of this name with other settings.
        """
        config = self.config(*settings, seed=seed)
        path = self.out / "runs" / f"{name}-{seed}"
        steps = range(config.sample_every, config.world_steps + 1, config.sample_every)
        files = {step: path / "snapshots" / f"{step:06d}.pt" for step in steps}
        with self._opened(path, config) as run:
            view = RunView(self.data, config)

            def keep(model: torch.nn.Module, step: int) -> None:
                files[step].parent.mkdir(exist_ok=True)
                temporary = files[step].with_suffix(".tmp")
                torch.save(model.state_dict(), temporary)
                temporary.replace(files[step])

            if not all(file.is_file() for file in files.values()):
                train_world(run, self._latents(run), view, self.split[0], keep)
            worlds = {}
            for step, file in files.items():
                model = FAR(config.far(len(self.data.spec.action_vocabulary)))
                model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
                model.requires_grad_(False).to(self.device)
                worlds[step] = assemble(run, view, model, self._start.model.autoencoder, {})
        return worlds

    def trained(self, name: str, settings: Sequence[str]) -> list[WorldModel]:
        """A variant's worlds at the end of their trainings, one of each seed."""
        return [self.train(name, settings, seed=seed)[self.scale.steps] for seed in range(self.seeds)]

    def clips(self, length: int, starts: int | None = None) -> Clips:
        """Held-out clips, evenly spaced in each episode.

        Args:
            length: frames of each.
            starts: clips of an episode; None is the scale's number.

        Raises:
            ValueError: an episode is shorter than a clip.
        """
        starts = starts or self.scale.starts
        frames, latents, actions, episodes = [], [], [], []
        for episode in self.split[1]:
            room = self.data.num_frames(episode) - length
            if room < 0:
                raise ValueError(f"held-out episodes need {length} frames, found {length + room}; record longer ones")
            for start in sorted({round(room * i / max(1, starts - 1)) for i in range(starts)}):
                clip, produced_by = self.latents.clip(episode, start, length)
                produced_by[0] = len(self.data.spec.action_vocabulary)  # nobody knows what a stream's first frame made
                frames.append(self.data.frames(episode, start, start + length))
                latents.append(clip)
                actions.append(produced_by)
                episodes.append(episode)
        return Clips(np.stack(frames), torch.stack(latents), torch.stack(actions), np.array(episodes))

    def score(self, drawn: np.ndarray, truth: np.ndarray) -> Scores:
        """PSNR and LPIPS of each clip, (N,), of frames (N, P, H, W, 3)."""
        scores = frame_scores(drawn, truth, self.instruments)
        return {name: scores[name].mean(axis=1) for name in SCORES}

    def table(self, heading: str, scores: Mapping[str, Sequence[Scores]], clips: Clips, shown: int) -> list[dict]:
        """A row for each variant, and one for holding the last shown frame, which any model should beat.

        Args:
            heading: of the variants.
            scores: of each variant's seeds, see `score`.
            clips: that were scored.
            shown: frames of theirs that were given.
        """
        future = clips.frames[:, shown:]
        frozen = np.broadcast_to(clips.frames[:, shown - 1, None], future.shape)
        rows = []
        for name, each in {**scores, "last frame held": [self.score(frozen, future)]}.items():
            cells = {label: mean_and_error(stacked(each, score), clips.episodes) for score, label in SCORES.items()}
            rows.append({heading: name, **cells})
        return rows

    def vectors(self, videos: np.ndarray) -> np.ndarray:
        """What stands in for I3D's view of videos (N, F, H, W, 3), see `farworld.train.frechet`: (N, V, 512)."""
        assert self.instruments.lpips is not None
        found = ClipFeatures(self.instruments.lpips)(torch.from_numpy(np.ascontiguousarray(videos)))
        return found.unflatten(0, (len(videos), -1)).numpy()

    def facts(self) -> dict[str, Any]:
        """The conditions of a measurement."""
        return {
            "commit": commit_of_checkout(),
            "hardware": describe_hardware(self.device),
            "torch": torch.__version__,
            "command": shlex.join(["python", *sys.argv]),
            "training seeds": self.seeds,
        }

    def describe_training(self, settings: Sequence[str]) -> str:
        """Data and length of a training, in a phrase."""
        train, held_out = self.split
        spec = self.data.spec
        return (
            f"{len(train)} episodes of {self.data.num_frames(0)} frames of {spec.env_id} to train on, {len(held_out)} "
            f"held out; {self.scale.steps} steps of {self.config(*settings).world_batch_size} clips"
        )


def farworld(*arguments: str) -> None:
    """Run a farworld command."""
    subprocess.run([sys.executable, "-m", "farworld", *arguments], check=True, stdout=sys.stderr)


def with_positions(world: WorldModel, positions: Positions) -> WorldModel:
    """The same weights, told the distance of frames in another way."""
    config = dataclasses.replace(world.config, model=dataclasses.replace(world.config.model, positions=positions))
    with torch.device("meta"):
        changed = WorldModel(config)
    changed.autoencoder, changed.transformer = world.autoencoder, FAR(config.model)
    changed.transformer.load_state_dict(world.transformer.state_dict())
    return changed.eval().requires_grad_(False).to(world.device)


def roll_out(
    world: WorldModel, clips: Clips, shown: int, *, num_steps: int, remember: int | None = None, seed: int = 0
) -> np.ndarray:
    """The frames after the first `shown` true ones, under the true actions, each from what was predicted before.

    Args:
        world: predicts.
        clips: N of F frames.
        shown: frames.
        num_steps: denoising steps a frame.
        remember: frames; None remembers whole clips.
        seed: of the noise; a clip's does not depend on which it is rolled out with.

    Returns:
        (N, F − shown, H, W, 3), uint8.
    """
    parts = []
    with progress_bar("rolling out", len(clips.frames) * (clips.length - shown), unit="frames") as advance:
        for first in range(0, len(clips.frames), STREAMS):
            part = clips.part(slice(first, first + STREAMS))
            count = len(part.frames)
            rollout = Rollout(world, batch_size=count, num_steps=num_steps, context_frames=remember or clips.length)
            seeds = [seed * 1_000_003 + first + i for i in range(count)]
            rollout.prime_latents(part.latents[:, :shown].to(world.device), part.actions[:, :shown], seed=seeds)
            drawn = []
            for t in range(shown, clips.length):
                drawn.append(rollout.step(part.actions[:, t]))
                advance(count)
            parts.append(np.stack(drawn, axis=1))
    return np.concatenate(parts)


# Comparing


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two variants' scores on the same clips."""

    mean: float
    error: float  # standard error over episodes
    of_seeds: tuple[float, ...]  # each training seed's mean

    @property
    def is_clear(self) -> bool:
        """Two standard errors from nothing, and of one sign in all training seeds."""
        alike = len({math.copysign(1, mean) for mean in self.of_seeds}) == 1
        return alike and abs(self.mean) > CLEAR * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.error:.4f}"


def difference(one: np.ndarray, other: np.ndarray, episodes: np.ndarray) -> Difference:
    """One minus other, paired.

    Args:
        one: (S, N), scores of the clips by training seed.
        other: likewise.
        episodes: (N,), which clips belong together: those of one episode are not independent.
    """
    each = one - other
    of_episodes = [float(each[:, episodes == episode].mean()) for episode in np.unique(episodes)]
    error = standard_error(of_episodes)
    return Difference(
        float(np.mean(of_episodes)), math.inf if error is None else error, tuple(map(float, each.mean(axis=1)))
    )


def stacked(scores: Sequence[Scores], name: str) -> np.ndarray:
    """One of the scores of a variant's seeds, (S, N)."""
    return np.stack([each[name] for each in scores])


def mean_and_error(scores: np.ndarray, episodes: np.ndarray) -> str:
    """The mean of scores (S, N) and its standard error over episodes, as text."""
    found = difference(scores, np.zeros_like(scores), episodes)
    digits = 2 if abs(found.mean) > 5 else 4
    return f"{found.mean:.{digits}f} ± {found.error:.{digits}f}"


def distance_and_error(
    one: np.ndarray, other: np.ndarray, truth: np.ndarray, episodes: np.ndarray
) -> tuple[float, float, float]:
    """Fréchet distances of two models' clips to the true ones, and the standard error of their difference.

    The error is that of resampled episodes (bootstrap), the same ones for both models and the truth.

    Args:
        one: (N, V, D), V feature vectors of each clip.
        other: likewise.
        truth: likewise.
        episodes: (N,), which clips belong together.
    """

    def distances(chosen: np.ndarray) -> tuple[float, float]:
        real = truth[chosen].reshape(-1, truth.shape[-1])
        first, second = (frechet_distance(x[chosen].reshape(-1, x.shape[-1]), real) for x in (one, other))
        return first, second

    rng, names = np.random.default_rng(0), np.unique(episodes)
    resampled = []
    for _ in range(RESAMPLES):
        drawn = rng.choice(names, len(names))
        found = distances(np.concatenate([np.flatnonzero(episodes == name) for name in drawn]))
        resampled.append(found[0] - found[1])
    return *distances(np.arange(len(truth))), float(np.std(resampled, ddof=1))


# Reporting


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a study found."""

    title: str
    paper: str  # what it says
    setup: str  # what is measured here
    rows: list[dict[str, Any]]  # of the table
    rule: str  # when the direction is the paper's
    reproduced: bool
    found: str  # what the rule looked at
    notes: tuple[str, ...] = ()
    figure: str | None = None  # SVG
    sheet: np.ndarray | None = None  # (H, W, 3), uint8
    sheet_rows: str = ""

    @property
    def verdict(self) -> str:
        """In two words."""
        return "same direction" if self.reproduced else "not reproduced"


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table of rows, with the columns of the first."""
    headings = list(rows[0])
    lines = [headings, ["---"] * len(headings), *([str(row.get(h, "")) for h in headings] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(name: str, result: Result, facts: dict[str, Any], out: Path) -> Path:
    """Write NAME.md, NAME.json, and where there are any paper_NAME.svg and NAME.png; the first one's path."""
    table = markdown_table(result.rows)
    parts = [
        f"## {result.title}: {result.verdict}",
        f"The paper: {result.paper}",
        f"Here: {result.setup}{' ± is the standard error over held-out episodes.' if '±' in table else ''}",
        table,
        f"Rule: {result.rule}",
        f"Found: {result.found}. **{result.verdict[0].upper()}{result.verdict[1:]}.**",
        *result.notes,
    ]
    if result.figure is not None:
        # Text in the page's colour has none in a file of its own.
        picture = result.figure.replace("<svg ", '<svg color="#333" style="background:#fff" ', 1)
        (out / f"paper_{name}.svg").write_text(picture, encoding="utf-8")
        parts.append(f"![{result.title}](paper_{name}.svg)")
    if result.sheet is not None:
        write_png(out / f"{name}.png", result.sheet)
    parts.append("; ".join(f"{key}: `{value}`" for key, value in facts.items()))
    path = out / f"{name}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    report = {"verdict": result.verdict, "found": result.found, "rows": result.rows, **facts}
    (out / f"{name}.json").write_text(json_format.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


def sheet_of(truth: np.ndarray, rollouts: Sequence[np.ndarray]) -> np.ndarray:
    """For a few clips the truth (N, P, H, W, 3) and below it each variant's rollout."""
    each = [
        video[clip * len(truth) // SHEET_CLIPS, -SHEET_FRAMES:]
        for clip in range(min(SHEET_CLIPS, len(truth)))
        for video in (truth, *rollouts)
    ]
    return contact_sheet(np.concatenate(each), columns=each[0].shape[0])


def main(name: str, study: Callable[[Study], Result], arguments: list[str] | None = None) -> None:
    """Run a study's command line; an expected error is one line and exit code 2."""
    app = App(name=f"{name}.py", version_flags=(), result_action="return_value", help=study.__doc__)

    @app.default
    def run(
        *,
        out: Annotated[Path, Parameter(help="Where to train, and to write the result to.")],
        data: Annotated[Path | None, Parameter(help="A recorded dataset; without it one is recorded.")] = None,
        scale: Annotated[str, Parameter(help="small, or tiny for a look at whether it runs.")] = "small",
        seeds: Annotated[int, Parameter(help="Trainings of each variant.")] = 1,
        device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "cpu",
        json: Annotated[bool, Parameter(negative=(), help="Also print one JSON object, as the last line.")] = False,
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"--scale must be one of {', '.join(SCALES)}, got {scale!r}")
        if seeds < 1:
            raise ValueError(f"--seeds must be 1 or more, got {seeds}")
        out.mkdir(parents=True, exist_ok=True)
        setup = Study(out=out, scale=SCALES[scale], data_path=data, seeds=seeds, device=choose_device(device))
        result = study(setup)
        path = publish(name, result, setup.facts(), out)
        print(path.read_text(encoding="utf-8"))
        if json:
            print(path.with_suffix(".json").read_text(encoding="utf-8").replace("\n", ""))

    try:
        app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False)
    except (CycloptsError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
