"""Video prediction: true frames are given, the rest is dreamed under the true actions, and both are compared.

Two ways of counting stand side by side, since published figures come from either (docs/evaluation.md):

- `teco`: as TECO's code counts. Frames as they are; LPIPS on [−1, 1]; SSIM where its window fits; the mean over all.
- `far`: as FAR's code counts. Dream and truth go side by side through a lossy mp4 file; LPIPS is handed [0, 1]; SSIM
  is counted at mirrored borders, too; of several trajectories the best counts (and, in `mse`, the worst).

PSNR, SSIM and LPIPS are those of the predicted frames; FVD is that of whole videos, the context included: the true one
in `teco`, in `far` the autoencoder's, with a red border around its frames.

Shape letters: S seeds, E episodes, B episodes of one batch, N trajectories, C context frames, P predicted frames,
F = C + P, H W height and width, D features.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from farworld.dataset import Dataset
from farworld.rollout import Rollout
from farworld.train.evaluate import psnr, ssim
from farworld.train.frechet import FVD_VIDEOS, ClipFeatures, frechet_distance
from farworld.train.i3d import VideoLogits
from farworld.train.lpips import LPIPS
from farworld.video import decode_mp4, encode_mp4
from farworld.world_model import WorldModel

CHUNK = 128  # images that are compared at once
FAR_FPS = 8  # of the videos that FAR's evaluation writes
FAR_CRF = 23  # the codec's own: no quality reaches it
UNPAINTED = (36, 264)  # context and prediction of FAR's FVD tests, whose options leave the red border out
TIMED_FRAMES = 24
STAND_IN = "frechet_alexnet"
LABELS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "mse": "MSE",
    "fvd": "FVD",
    STAND_IN: "Fréchet distance of AlexNet features, not FVD",
}
FORM = 1  # of what is kept; another number when the same work gives other figures
SMALLER_IS_BETTER = ("lpips", "mse", "fvd", STAND_IN)
Scores = dict[str, np.ndarray]


class Predictor(Protocol):
    """What is judged: `farworld.rollout.Rollout`, or anything else that draws the next frames."""

    def prime(self, frames: np.ndarray, actions: np.ndarray, /, *, seed: int = 0) -> None:
        """Begin anew with true frames (B, C, H, W, 3), uint8, and the actions (B, C − 1) between them."""

    def step(self, action: np.ndarray, /) -> np.ndarray:
        """The frames (B, H, W, 3), uint8, that the actions (B,) produce."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionTask:
    """What is to be predicted, and how often."""

    context: int = 144  # true frames that are given
    predict: int = 156  # frames that are dreamed after them
    seeds: int = 1  # times that everything is repeated, with other noise
    seed: int = 0  # of the first time
    trajectories: int = 1  # dreams of one episode in each of these, of which the best may count
    shuffle_actions: bool = False  # dream under the episode's actions in a random order

    def __post_init__(self) -> None:
        for name in ("context", "predict", "seeds", "trajectories"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be 1 or more, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")

    @property
    def frames(self) -> int:
        """Frames that an episode needs."""
        return self.context + self.predict


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What measures."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    lpips: LPIPS | None = None  # None leaves LPIPS and the Fréchet distance of AlexNet features out
    i3d: VideoLogits | None = None  # None leaves FVD out


def predictors_of(world: WorldModel, *, remember: int, **options: Any) -> Callable[[int], Rollout]:
    """Makes rollouts of a world by their number of streams; options are those of `Rollout`.

    Args:
        world: what dreams.
        remember: frames that it remembers; its short-term window at least.
        options: num_steps, guidance_scale, layout and so on.
    """
    context_frames = max(world.config.model.short_term_frames, remember)
    return lambda batch_size: Rollout(world, batch_size=batch_size, context_frames=context_frames, **options)


def reconstruct_with(world: WorldModel) -> Callable[[np.ndarray], np.ndarray]:
    """Frames (N, H, W, 3), uint8, to what the world's autoencoder makes of them."""

    @torch.inference_mode()
    def reconstruct(frames: np.ndarray) -> np.ndarray:
        chunks = torch.from_numpy(np.ascontiguousarray(frames)).split(CHUNK)
        return torch.cat([world.decode(world.encode(chunk[:, None])[:, 0]).cpu() for chunk in chunks]).numpy()

    return reconstruct


def long_enough(data: Dataset, task: PredictionTask, most: int | None = None) -> list[int]:
    """The first episodes that have as many frames as the task needs.

    Raises:
        ValueError: none has.
    """
    lengths = [data.num_frames(i) for i in range(len(data))]
    chosen = [i for i, length in enumerate(lengths) if length >= task.frames][:most]
    if not chosen:
        raise ValueError(
            f"{task.context} frames of context and {task.predict} to predict need episodes of {task.frames} frames, "
            f"the longest of {data.directory} has {max(lengths, default=0)}; record longer ones with --frames, or ask "
            "for less with --context and --predict"
        )
    return chosen


def roll_out(
    predictor: Predictor,
    frames: np.ndarray,
    actions: np.ndarray,
    context: int,
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """The frames that follow the context under these actions.

    Args:
        predictor: what dreams.
        frames: (B, C or more, H, W, 3), uint8; the first C are shown.
        actions: (B, F − 1), int64.
        context: C.
        seed: of the noise.
        advance: called with the number of frames done.

    Returns:
        (B, F − C, H, W, 3), uint8.
    """
    predictor.prime(frames[:, :context], actions[:, : context - 1], seed=seed)
    drawn = []
    for t in range(context - 1, actions.shape[1]):
        drawn.append(np.array(predictor.step(actions[:, t])))
        advance(len(frames))
    return np.stack(drawn, axis=1)


@torch.inference_mode()
def frame_scores(drawn: np.ndarray, truth: np.ndarray, instruments: Instruments, *, as_far: bool = False) -> Scores:
    """psnr, ssim and lpips of frames, each (…,), float64.

    Args:
        drawn: (…, H, W, 3), uint8.
        truth: likewise.
        instruments: what measures.
        as_far: give LPIPS pixels in [0, 1], which it does not expect, and count SSIM at the mirrored borders, too, as
            FAR's evaluation does; else LPIPS gets [−1, 1], and SSIM's window stays inside, as in TECO's.
    """
    shape = drawn.shape[:-3]
    rows: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
    pairs = [torch.from_numpy(np.array(x.reshape(-1, *x.shape[-3:]))).split(CHUNK) for x in (drawn, truth)]
    for a, b in zip(*pairs, strict=True):
        a, b = a.to(instruments.device), b.to(instruments.device)
        rows["psnr"].append(psnr(a, b))
        rows["ssim"].append(ssim(a, b, borders=as_far))
        if instruments.lpips is not None:
            images = [x.permute(0, 3, 1, 2).float() / 255 for x in (a, b)]
            rows["lpips"].append(instruments.lpips(*images, unit_range=not as_far))
    return {name: torch.cat(row).cpu().double().numpy().reshape(shape) for name, row in rows.items() if row}


def far_videos(drawn: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dream and truth as FAR's evaluation sees them: painted, side by side, and back from a lossy file.

    Args:
        drawn: (B, N, P, H, W, 3), uint8.
        truth: (B, F, H, W, 3), uint8.
        seen: (B, C, H, W, 3), uint8, the autoencoder's context, which is the dream's.

    Returns:
        Dream and truth, (B, N, F, H, W, 3) each, uint8.
    """
    context, predict = seen.shape[1], drawn.shape[2]
    width = truth.shape[-2]
    pairs = np.empty((*drawn.shape[:2], *truth.shape[1:-2], 2 * width, 3), np.uint8)
    pairs[..., width:, :] = truth[:, None]
    pairs[:, :, context:, :, :width] = drawn
    pairs[:, :, :context, :, :width] = seen[:, None]
    if (context, predict) != UNPAINTED:
        for half in (pairs[:, :, :context, :, :width], pairs[:, :, :context, :, width:]):
            half[..., [0, -1], :, :] = half[..., :, [0, -1], :] = (255, 0, 0)
    # One file for an episode, its trajectories one after the other.
    files = [encode_mp4(video.reshape(-1, *video.shape[2:]), FAR_FPS, crf=FAR_CRF) for video in pairs]
    back = np.stack([decode_mp4(file) for file in files]).reshape(pairs.shape)
    return back[..., :width, :], back[..., width:, :]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model, some episodes, one task: dreams every episode several times and scores the dreams."""

    make_predictor: Callable[[int], Predictor]  # a predictor for so many streams
    data: Dataset
    task: PredictionTask
    instruments: Instruments
    # Frames (N, H, W, 3), uint8, to the model's own of them: the context of dreams in `far`, and the best it could do.
    reconstruct: Callable[[np.ndarray], np.ndarray] = lambda frames: frames
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else dreams depend on, to tell kept ones apart

    def run(
        self,
        name: str,
        episodes: Sequence[int],
        *,
        batch_size: int = 16,
        num_shown: int = 0,
        shelf: Shelf | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Score the model.

        Args:
            name: of the result.
            episodes: indices into the data, long enough for the task.
            batch_size: streams that run together; the trajectories of one episode are not torn apart.
            num_shown: episodes whose first dream is returned as a video.
            shelf: where finished batches are taken from and put; None begins with nothing.
            advance: called with the number of frames done.

        Returns:
            The result, ready for JSON: name, summary, series, table, notes; and for `farworld eval compare` scores,
            (S, E) by name, and episodes, what tells them. And videos (P, H, W', 3), uint8, by name: truth, dream and
            difference side by side.
        """
        task, shelf = self.task, shelf or Shelf()
        each = max(1, batch_size // task.trajectories)
        seeds = range(task.seed, task.seed + task.seeds)
        measured = [task.context, task.predict, self.instruments.lpips is not None, self.instruments.i3d is not None]
        truths: list[Scores] = []
        dreams: list[list[Scores]] = [[] for _ in seeds]
        videos: dict[str, np.ndarray] = {}
        for first in range(0, len(episodes), each):
            batch = _Batch(self, episodes[first : first + each])
            key = [*measured, *self._digests(batch.members)]
            truths.append(shelf.get(["truth", *key], batch.look_at))
            for seed, row in zip(seeds, dreams, strict=True):
                shown = [i for i in batch.members if seed == task.seed and i in episodes[:num_shown]]
                progress = _Progress(advance)
                make = partial(batch.dream, seed, shown, progress)
                facts = [dict(self.settings), task.trajectories, task.shuffle_actions, seed, shown]
                found = shelf.get(["dream", *facts, *key], make)
                advance(len(batch.members) * task.trajectories * task.predict - progress.done)
                videos.update({f"{name}: {key}": found[key] for key in found if key.startswith("episode")})
                row.append({key: values for key, values in found.items() if not key.startswith("episode")})
        truth = _join(truths, np.concatenate)
        result = _summarise(name, task, _join([_join(row, np.concatenate) for row in dreams], np.stack), truth)
        return {**result, "episodes": self._digests(episodes)}, videos

    def _digests(self, episodes: Sequence[int]) -> list[str]:
        return [str(self.data.stored(i).digest) for i in episodes]


def _join(rows: Sequence[Scores], how: Callable[[list[np.ndarray]], np.ndarray]) -> Scores:
    return {key: how([row[key] for row in rows]) for key in rows[0]}


class _Batch:
    """Episodes that are looked at together, read when somebody needs them."""

    def __init__(self, evaluation: Evaluation, members: Sequence[int]) -> None:
        self.evaluation, self.members = evaluation, list(members)

    @cached_property
    def frames(self) -> np.ndarray:
        """(B, F, H, W, 3), uint8."""
        return np.stack([self.evaluation.data.frames(i, 0, self.evaluation.task.frames) for i in self.members])

    @cached_property
    def seen(self) -> np.ndarray:
        """The context as the model sees it, (B, C, H, W, 3), uint8."""
        context = self.frames[:, : self.evaluation.task.context]
        return self.evaluation.reconstruct(context.reshape(-1, *context.shape[2:])).reshape(context.shape)

    def look_at(self) -> Scores:
        """What needs no dream: features of the truth, and how a frozen frame and the autoencoder alone do."""
        instruments, context = self.evaluation.instruments, self.evaluation.task.context
        future = self.frames[:, None, context:]
        frozen = np.broadcast_to(self.frames[:, None, context - 1, None], future.shape)
        best = self.evaluation.reconstruct(future.reshape(-1, *future.shape[3:])).reshape(future.shape)
        found: Scores = {}
        for mode, videos in (("frozen", frozen), ("autoencoder", best)):
            found.update({f"{mode}.{k}": v for k, v in frame_scores(videos, future, instruments).items()})
        if instruments.lpips is not None:
            features = ClipFeatures(instruments.lpips)
            for mode, videos in (("truth", future), ("frozen", frozen), ("autoencoder", best)):
                found[f"{mode}.{STAND_IN}"] = _vectors(features, videos)
        if instruments.i3d is not None:
            found["truth.fvd"] = _vectors(instruments.i3d, self.frames[:, None])
        return found

    def dream(self, seed: int, shown: Sequence[int], advance: Callable[[int], None]) -> Scores:
        """Dreams, scored: curves (B, N, P), features (B, N, vectors, D), and videos of the shown episodes."""
        frames, task, instruments = self.frames, self.evaluation.task, self.evaluation.instruments
        actions = np.stack([self.evaluation.data.actions(i)[: task.frames - 1] for i in self.members])
        if task.shuffle_actions:
            rngs = [np.random.default_rng([seed, i]) for i in self.members]
            actions = np.stack([rng.permutation(row) for rng, row in zip(rngs, actions, strict=True)])
        given, taken = (np.repeat(rows, task.trajectories, axis=0) for rows in (frames[:, : task.context], actions))
        # Every batch has noise of its own.
        noise = int(np.random.SeedSequence([seed, self.members[0]]).generate_state(1)[0])
        predictor = self.evaluation.make_predictor(len(given))
        drawn = roll_out(predictor, given, taken, task.context, seed=noise, advance=advance)
        drawn = drawn.reshape(len(frames), task.trajectories, *drawn.shape[1:])
        future = np.broadcast_to(frames[:, None, task.context :], drawn.shape)
        found = {f"teco.{k}": v for k, v in frame_scores(drawn, future, instruments).items()}
        lossy, lossy_truth = far_videos(drawn, frames, self.seen)
        dream, truth = (videos[:, :, task.context :] for videos in (lossy, lossy_truth))
        found.update({f"far.{k}": v for k, v in frame_scores(dream, truth, instruments, as_far=True).items()})
        found["far.mse"] = np.square(dream / 255.0 - truth / 255.0).mean(axis=(-3, -2, -1))
        if instruments.lpips is not None:
            found[f"teco.{STAND_IN}"] = _vectors(ClipFeatures(instruments.lpips), drawn)
        if instruments.i3d is not None:
            context = np.broadcast_to(
                frames[:, None, : task.context], (*drawn.shape[:2], task.context, *frames.shape[2:])
            )
            found["teco.fvd"] = _vectors(instruments.i3d, np.concatenate([context, drawn], axis=2))
            found["far.fvd"] = _vectors(instruments.i3d, lossy)
            found["far.fvd of truth"] = _vectors(instruments.i3d, lossy_truth)
        for i in shown:
            row = self.members.index(i)
            found[self.evaluation.data.episodes[i]] = side_by_side(future[row, 0], drawn[row, 0])
        return found


class Shelf:
    """Finished work by what it depends on: in memory, and as files in a folder, if there is one, for another time."""

    def __init__(self, folder: Path | None = None, facts: Mapping[str, Any] | None = None) -> None:
        """Facts: what all of the work depends on; work of other facts is not found in the folder."""
        self.folder, self.facts = folder, {"form": FORM, **(facts or {})}
        self._memory: dict[str, Scores] = {}

    def get(self, key: Sequence[Any], make: Callable[[], Scores]) -> Scores:
        """What was kept under this key, or else what make() makes, which is kept."""
        text = json.dumps([self.facts, *key], sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        if name not in self._memory:
            self._memory[name] = make() if self.folder is None else self._stored(self.folder / f"{name}.npz", make)
        return self._memory[name]

    def _stored(self, path: Path, make: Callable[[], Scores]) -> Scores:
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(file, **made)  # type: ignore[arg-type]
        temporary.replace(path)
        return made


class _Progress:
    """Passes on how many frames are done, and counts them."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self.done = advance, 0

    def __call__(self, count: int) -> None:
        self.done += count
        self._advance(count)


def _vectors(features: Callable[[Tensor], Tensor], videos: np.ndarray) -> np.ndarray:
    """Features (B, N, vectors, D), float32, of videos (B, N, F, H, W, 3)."""
    found = features(torch.from_numpy(np.array(videos.reshape(-1, *videos.shape[2:]))))
    return found.cpu().numpy().reshape(*videos.shape[:2], -1, found.shape[-1])


def side_by_side(truth: np.ndarray, drawn: np.ndarray, gap: int = 2) -> np.ndarray:
    """Truth, dream and their difference, (F, H, 3 W and gaps, 3), uint8; grey is no difference."""
    difference = ((drawn.astype(np.int16) - truth) // 2 + 128).astype(np.uint8)
    space = np.full((*truth.shape[:2], gap, 3), 255, np.uint8)
    return np.concatenate([truth, space, drawn, space, difference], axis=2)


def _summarise(name: str, task: PredictionTask, dreams: Scores, truth: Scores) -> dict[str, Any]:
    """The result of dreams (S, E, N, …) and of what needs none (E, 1, …)."""
    num_seeds, num_episodes = dreams["teco.psnr"].shape[:2]
    rows: list[dict[str, Any]] = []
    scores: dict[str, list] = {}

    def add(mode: str, metric: str, values: np.ndarray) -> None:
        """Values (S, E), or (S, 1) where all episodes have one together."""
        scores[f"{mode}.{metric}"] = np.round(values, 6).tolist()
        of_seeds, of_episodes = values.mean(axis=1), values.mean(axis=0)
        rows.append(
            {
                "mode": mode,
                "metric": LABELS[metric],
                "mean": float(values.mean()),
                "± seeds": float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None,
                "± episodes": standard_error(of_episodes),
            }
        )

    def best(metric: str, values: np.ndarray) -> np.ndarray:
        """Of the trajectories' means; of `mse` the largest, as FAR's code has it."""
        means = values.mean(axis=3)
        return means.min(axis=2) if metric == "lpips" else means.max(axis=2)

    found = {**{key: values[None] for key, values in truth.items()}, **dreams}
    metrics = [metric for metric in ("psnr", "ssim", "lpips") if f"teco.{metric}" in dreams]
    for mode in ("teco", "frozen", "autoencoder"):
        for metric in metrics:
            add(mode, metric, found[f"{mode}.{metric}"].mean(axis=(2, 3)))
    for metric in metrics if task.trajectories > 1 else ():
        add(f"teco, best of {task.trajectories}", metric, best(metric, dreams[f"teco.{metric}"]))
    for metric in (*metrics, "mse"):
        add("far", metric, best(metric, dreams[f"far.{metric}"]))
    for key in ("teco.fvd", "far.fvd", *(f"{mode}.{STAND_IN}" for mode in ("teco", "frozen", "autoencoder"))):
        mode, _, metric = key.partition(".")
        fakes = found.get(key)  # (S, E, N, vectors, D)
        if fakes is None or fakes.shape[1] * fakes.shape[3] < 2:
            continue
        reals = found.get(f"{key} of truth", np.broadcast_to(truth[f"truth.{metric}"], fakes.shape))
        distances = np.empty((len(fakes), fakes.shape[2]))
        for place in np.ndindex(distances.shape):  # seed and trajectory
            pair = (vectors[place[0], :, place[1]].reshape(-1, vectors.shape[-1]) for vectors in (fakes, reals))
            distances[place] = frechet_distance(*pair)
        add(mode, metric, distances.mean(axis=1, keepdims=True))
    modes = ("teco", "far", "frozen", "autoencoder")
    curves = {
        f"{mode}.{metric}": found[f"{mode}.{metric}"].mean(axis=(0, 1, 2)) for metric in metrics for mode in modes
    }
    return {
        "name": name,
        "summary": {key: float(np.mean(values)) for key, values in scores.items()},
        "series": {key: np.round(values, 5).tolist() for key, values in curves.items()},
        "labels": {metric: f"{LABELS[metric]}, frame by frame behind the context" for metric in metrics},
        "table": rows,
        "notes": _notes(
            task, num_episodes, num_seeds, with_fvd="teco.fvd" in dreams, with_lpips="teco.lpips" in dreams
        ),
        "scores": scores,
    }


def standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Of the mean of independent values; None of a single one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _notes(task: PredictionTask, episodes: int, seeds: int, *, with_fvd: bool, with_lpips: bool) -> list[str]:
    """What has to be known to read the figures."""
    notes = [
        f"{episodes} episodes, {task.context} frames given, {task.predict} predicted; {seeds} seeds of "
        f"{task.trajectories} trajectories. Means are over frames, episodes, trajectories and seeds; ± seeds is the "
        "standard deviation of the seeds' means, ± episodes the standard error of the mean over episodes.",
        "teco: frames as they are, LPIPS on [−1, 1], SSIM without borders. far: frames from a lossy mp4 file, LPIPS on "
        "[0, 1], SSIM with borders, the best of the trajectories (of MSE the worst), as FAR's code counts. frozen: the "
        "last given frame, held. autoencoder: the true frames, encoded and decoded, which no dream can beat for long.",
    ]
    if with_fvd:
        border = "without" if (task.context, task.predict) == UNPAINTED else "with"
        notes.append(
            "FVD is of whole videos, the context included: in teco the true one, in far the autoencoder's, "
            f"{border} a red border."
        )
        if episodes < FVD_VIDEOS:
            notes.append(
                f"FVD of {episodes} videos: published values take {FVD_VIDEOS}, and fewer videos give larger values."
            )
    if not with_lpips:
        notes.append("No LPIPS, nor features of AlexNet: the frames are smaller than it takes.")
    if task.shuffle_actions:
        notes.append("The actions of each episode were shuffled: a model that heeds them must do worse than without.")
    return notes


def frames_per_second(
    make_predictor: Callable[[int], Predictor], frames: np.ndarray, actions: np.ndarray, context: int
) -> float:
    """How fast one stream is dreamed, decoder included: from the median of up to 24 frames behind the context.

    Args:
        make_predictor: see `Evaluation`.
        frames: (F, H, W, 3), uint8.
        actions: (F − 1,), int64.
        context: C.
    """
    predictor = make_predictor(1)
    predictor.prime(frames[None, :context], actions[None, : context - 1])
    took = []
    for t in range(context - 1, min(len(actions), context + TIMED_FRAMES)):
        began = time.perf_counter()
        predictor.step(actions[None, t])
        took.append(time.perf_counter() - began)
    return 1 / statistics.median(took)


def trade_off(results: Mapping[int, Mapping[str, Any]], speeds: Mapping[int, float]) -> dict[str, Any]:
    """Quality against speed, of results by their denoising steps and of frames a second by the same."""
    shown = [key for key in next(iter(results.values()))["summary"] if key.startswith(("teco.", "far."))]
    figures = {key: {steps: result["summary"][key] for steps, result in results.items()} for key in shown}
    names = {steps: f"{steps} steps" if steps > 1 else "1 step" for steps in results}
    plots = [
        {
            "title": f"{LABELS[metric]} against speed",
            "x_label": "frames a second, one stream, decoder included",
            "y_label": LABELS[metric],
            "log_x": True,
            "marks": True,
            "lines": {
                mode: [[speeds[steps], value] for steps, value in figures[f"{mode}.{metric}"].items()]
                for mode in ("teco", "far")
                if f"{mode}.{metric}" in figures
            },
            "labels": {"teco": list(names.values())},
        }
        for metric in LABELS
        if f"teco.{metric}" in figures
    ]
    best = {}
    for key, values in figures.items():
        smaller = key.rpartition(".")[2] in SMALLER_IS_BETTER
        best[f"steps of the best {key}"] = sorted(values, key=values.__getitem__, reverse=not smaller)[0]
    return {
        "name": "quality against speed",
        "summary": best,
        "series": {},
        "table": [
            {"figure": figure, **{names[steps]: value for steps, value in values.items()}}
            for figure, values in {"frames/s": speeds, **figures}.items()
        ],
        "notes": ["Frames a second are those of one stream on this machine, from the median time of a frame."],
        "plots": plots,
    }
