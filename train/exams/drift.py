"""Exam: for how long does the dream still look like its world?

The predictor dreams a thousand frames and more under fixed scripts of keys: walking, turning, idling, and all actions
mixed. Pictures are judged by statistics that need no true frame beside them, in spans of SPAN_FRAMES:

- mean, std: grey level, and its deviation within a frame;
- saturation: largest minus smallest colour channel, over the largest;
- sharpness: gradient energy, the mean absolute difference of neighbouring pixels;
- motion: mean absolute change from one frame to the next, without which a dream that has stopped would live for ever;
- round_trip: root mean square distance in grey levels between a frame and itself encoded and decoded, which grows as
  frames leave what the autoencoder knows; only where there is an autoencoder.

The band of a script and a statistic is what the real world shows under that script, in other worlds: from the 5 % to
the 95 % quantile of its spans, and BAND_MARGIN of that width more on either side; of the round trip, which is short
for what a decoder has made, only the upper end counts. A statistic leaves its band for good at the end of the last span
that lies within; a stream's lifetime is the number of frames until the first of its statistics has left for good. The
true episode of every dream is judged alike, as the most that can be had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farworld.actions import ActionVocabulary
from farworld.envs.environments import PixelEnv
from farworld.envs.policies import sticky_random
from farworld.train.exams.walks import (
    EXAM_SEED,
    FORWARD,
    IDLE,
    LEFT,
    RIGHT,
    START_FRAMES,
    Advance,
    ExamResult,
    RoundTrip,
    find_action,
    nobody,
    numbers,
    plot,
    rounded,
    side_by_side,
    take_walks,
)
from farworld.train.prediction import Predictor

SPAN_FRAMES = 20
SAMPLE_EVERY = 5  # frames; of those between only the next one is looked at, for motion
QUANTILES = (0.05, 0.95)
BAND_MARGIN = 0.25  # of the band's width
REAL_EPISODES = 16  # of each script, for the band
REAL_FRAMES = 300  # of each of them, at most
REAL_SEEDS = 1_000  # after the first seed of the dreams the band's begin
VIDEO_FRAMES = 300  # of each script, at most, evenly spaced


# Statistics


def gradient(frames: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of frames (N, H, W, 3), (N,)."""
    pixels = frames.float()
    along, down = (pixels.diff(dim=axis).abs().flatten(1).mean(dim=1) for axis in (1, 2))
    return (along + down) / 2


@torch.inference_mode()
def frame_statistics(frames: Tensor, round_trip: RoundTrip | None = None) -> dict[str, Tensor]:
    """The statistics of the module's docstring for frames (N, H, W, 3), uint8; each (N,), float32."""
    pixels = frames.float()
    largest = pixels.amax(dim=-1)
    facts = {
        "mean": pixels.flatten(1).mean(dim=1),
        "std": pixels.flatten(1).std(dim=1),
        "saturation": ((largest - pixels.amin(dim=-1)) / largest.clamp(min=1)).flatten(1).mean(dim=1),
        "sharpness": gradient(frames),
    }
    if round_trip is not None:
        facts["round_trip"] = (pixels - round_trip(frames).float()).square().flatten(1).mean(dim=1).sqrt()
    return facts


def span_statistics(
    videos: Iterable[np.ndarray], num_frames: int, round_trip: RoundTrip | None
) -> dict[str, np.ndarray]:
    """Means over the spans of streams that are seen frame by frame.

    Args:
        videos: yields num_frames times frames (B, H, W, 3), uint8.
        num_frames: what does not fill a last span is left out.
        round_trip: see `frame_statistics`.

    Returns:
        (B, spans) for each statistic.
    """
    sampled: list[dict[str, Tensor]] = []
    before = torch.empty(0)
    for t, each in enumerate(videos):
        if t % SAMPLE_EVERY > 1 or t >= num_frames // SPAN_FRAMES * SPAN_FRAMES:
            continue
        frames = torch.from_numpy(np.array(each))
        if t % SAMPLE_EVERY == 0:
            sampled.append(frame_statistics(frames, round_trip))
            before = frames.float()
        else:
            sampled[-1]["motion"] = (frames.float() - before).abs().flatten(1).mean(dim=1)
    joined = {name: torch.stack([row[name] for row in sampled], dim=1) for name in sampled[0]}
    return {name: x.unflatten(1, (-1, SPAN_FRAMES // SAMPLE_EVERY)).mean(dim=2).numpy() for name, x in joined.items()}


# Scripts


def scripts(vocabulary: ActionVocabulary, num_actions: int) -> dict[str, np.ndarray]:
    """The fixed scripts of a vocabulary, each (num_actions,), int64; those that need a missing action are left out."""
    forward, left, right = (find_action(vocabulary, names) for names in (FORWARD, LEFT, RIGHT))
    idle = find_action(vocabulary, IDLE)
    found: dict[str, list[int]] = {}
    if forward is not None and left is not None and right is not None:
        # Turns of different lengths to either side lead out of every corner.
        found["walk"] = [forward] * 12 + [left] * 3 + [forward] * 12 + [right] * 5
    if left is not None:
        found["turn"] = [left]
    if idle is not None:
        found["idle"] = [idle]
    act = sticky_random(len(vocabulary), np.random.default_rng(0))
    found["mixed"] = [act() for _ in range(num_actions)]
    return {name: np.resize(np.array(actions, np.int64), num_actions) for name, actions in found.items()}


# Bands and lifetimes


def bands(real: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Lower and upper end of each statistic's band, from the spans of real episodes."""
    found = {}
    for name, values in real.items():
        low, high = np.quantile(values, QUANTILES)
        margin = BAND_MARGIN * (high - low)
        found[name] = (
            0.0 if name == "round_trip" else float(low - margin),
            255.0 if name == "motion" else float(high + margin),
        )
    return found


def _is_inside(values: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    return (values >= band[0]) & (values <= band[1])


def lifetimes(spans: dict[str, np.ndarray], band: dict[str, tuple[float, float]]) -> dict[str, np.ndarray]:
    """Frames until each statistic of each stream, (B, spans), is out of its band for good, (B,), int."""
    found = {}
    for name, values in spans.items():
        inside = _is_inside(values, band[name])
        last = inside.shape[1] - np.argmax(inside[:, ::-1], axis=1)
        found[name] = np.where(inside.any(axis=1), last, 0) * SPAN_FRAMES
    return found


def drift(
    predictor: Predictor,
    env: PixelEnv,
    *,
    streams: int,
    num_frames: int = 1200,
    round_trip: RoundTrip | None = None,
    real_episodes: int = REAL_EPISODES,
    seed: int = EXAM_SEED,
    noise_seed: int = 0,
    advance: Advance = nobody,
) -> ExamResult:
    """Examine how long a predictor lasts.

    Args:
        predictor: of `streams` streams for each script of the vocabulary, see `scripts`; streams of one script lie
            beside each other.
        env: the real world.
        streams: worlds that each script is played in.
        num_frames: dreamed of each stream.
        round_trip: encodes and decodes frames (N, H, W, 3), uint8.
        real_episodes: of each script, for its band.
        seed: of the first world.
        noise_seed: of the predictor.
        advance: told the number of frames done, real and dreamed.

    Raises:
        ValueError: too few frames or episodes for a lifetime or a band.
    """
    if num_frames < 2 * SPAN_FRAMES or real_episodes < 2 or streams < 1:
        raise ValueError(
            f"expected at least {2 * SPAN_FRAMES} frames, 1 stream and 2 real episodes, got {num_frames}, {streams} "
            f"and {real_episodes}"
        )
    keys = scripts(env.spec.action_vocabulary, START_FRAMES - 1 + num_frames)
    band, true, starts, shown = {}, {}, [], {}
    for name, actions in keys.items():
        short = min(REAL_FRAMES, num_frames)
        real = [
            _real_spans(env, (each,), actions, short, round_trip, advance)[0]
            for each in range(seed + REAL_SEEDS, seed + REAL_SEEDS + real_episodes)
        ]
        band[name] = bands({fact: np.concatenate([spans[fact] for spans in real]) for fact in real[0]})
        true[name], episodes = _real_spans(env, range(seed, seed + streams), actions, num_frames, round_trip, advance)
        starts.append(episodes[:, :START_FRAMES].copy())
        shown[name] = episodes[0, START_FRAMES:][:: _every(num_frames)].copy()
    kept: list[np.ndarray] = []
    actions = np.repeat(np.stack([*keys.values()]), streams, axis=0)
    frames = _dreamed(predictor, np.concatenate(starts), actions, noise_seed, kept, advance)
    dreamed = span_statistics(frames, num_frames, round_trip)
    rows: list[dict[str, Any]] = []
    series: dict[str, list[float]] = {}
    alive, true_alive, inside, first_out = [], [], [], []
    for place, name in enumerate(keys):
        own = {fact: values[place * streams : (place + 1) * streams] for fact, values in dreamed.items()}
        life, true_life = lifetimes(own, band[name]), lifetimes(true[name], band[name])
        alive.append(np.stack([*life.values()]).min(axis=0))
        true_alive.append(np.stack([*true_life.values()]).min(axis=0))
        inside.append(np.stack([_is_inside(own[fact], band[name][fact]) for fact in own]).all(axis=0))
        first_out += [min(life, key=lambda fact, i=i: life[fact][i]) for i in range(streams)]  # type: ignore[misc]
        for fact, values in own.items():
            low, high = band[name][fact]
            series[f"{name}.{fact}"] = numbers(values.mean(axis=0))
            rows.append(
                rounded(
                    {
                        "script": name, "statistic": fact, "band_low": low, "band_high": high,
                        "first_span": values[:, 0].mean(), "last_span": values[:, -1].mean(),
                        "lifetime_median": float(np.median(life[fact])), "lifetime_min": float(life[fact].min()),
                        "true_lifetime_median": float(np.median(true_life[fact])),
                        "inside": float(_is_inside(values, (low, high)).mean()),
                    }
                )
            )  # fmt: skip
    every, everyone = np.concatenate(alive), np.concatenate(true_alive)
    summary = {
        "lifetime_median": float(np.median(every)), "lifetime_min": float(every.min()),
        "true_lifetime_median": float(np.median(everyone)), "true_lifetime_min": float(everyone.min()),
        **{f"{name}_lifetime_median": float(np.median(values)) for name, values in zip(keys, alive, strict=True)},
        "inside": float(np.mean(inside)), "frames": num_frames,
    }  # fmt: skip
    notes = [
        f"lifetime: frames until a statistic has left its band for good, in spans of {SPAN_FRAMES} frames; at most "
        f"{num_frames // SPAN_FRAMES * SPAN_FRAMES}; true_lifetime is that of the true episodes of the same starts and "
        "keys; inside is the share of spans with every statistic in its band",
        f"bands: {QUANTILES[0]:.0%} to {QUANTILES[1]:.0%} of {real_episodes} real episodes of each script, "
        f"{BAND_MARGIN:.0%} of the width wider on either side",
        f"{streams} streams a script ({', '.join(keys)}), {START_FRAMES} true frames before, seeds from {seed} on",
        "out first, stream by stream: " + ", ".join(first_out),
    ]
    video = np.stack(kept, axis=1)
    videos = {f"drift, {name}": side_by_side(shown[name], video[i * streams]) for i, name in enumerate(keys)}
    report = {
        "name": "drift", "summary": rounded(summary), "series": series, "table": rows, "notes": notes,
        "plots": [
            plot(
                fact, {name: series[f"{name}.{fact}"] for name in keys},
                [SPAN_FRAMES * (i + 1) for i in range(num_frames // SPAN_FRAMES)], "frame", fact,
            )
            for fact in dreamed
        ],
    }  # fmt: skip
    return ExamResult(report, videos)


def work(streams: int, num_frames: int, real_episodes: int) -> int:
    """Frames that one script takes, real and dreamed."""
    true, dreamed = streams * (START_FRAMES - 1 + num_frames), streams * num_frames
    return real_episodes * (START_FRAMES - 1 + min(REAL_FRAMES, num_frames)) + true + dreamed


def _every(num_frames: int) -> int:
    return -(-num_frames // VIDEO_FRAMES)


def _real_spans(
    env: PixelEnv,
    seeds: Sequence[int],
    actions: np.ndarray,
    num_frames: int,
    round_trip: RoundTrip | None,
    advance: Advance,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The spans behind the start of real episodes under a script, and their frames, (B, START_FRAMES + F, H, W, 3)."""
    rows = np.tile(actions[: START_FRAMES - 1 + num_frames], (len(seeds), 1))
    frames = take_walks(env, seeds, rows, advance).frames
    return span_statistics(frames.swapaxes(0, 1)[START_FRAMES:], num_frames, round_trip), frames


def _dreamed(
    predictor: Predictor, starts: np.ndarray, actions: np.ndarray, seed: int, kept: list[np.ndarray], advance: Advance
) -> Iterable[np.ndarray]:
    """Frames (B, H, W, 3) one after the other; some of them are kept for the videos."""
    predictor.prime(starts, actions[:, : START_FRAMES - 1], seed=seed)
    every = _every(actions.shape[1] - START_FRAMES + 1)
    for t, row in enumerate(actions[:, START_FRAMES - 1 :].T):
        frames = predictor.step(row)
        if t % every == 0:
            kept.append(frames.copy())
        advance(len(frames))
        yield frames
