"""Exam: does what was changed stay changed?

In the block world a hole is dug, or a block placed; the predictor sees it in true frames, then looks away and back, and
dreams all of that. The same is done in the real world with the change and without it. Where both differ when the eyes
are back, the dream is compared with either: it should side with the changed world.

A dream that has become a blur sides with whichever world is nearer to it in brightness. So the same is dreamed without
the change as well, with the same noise: how much of the true difference between both worlds lies in the difference
between both dreams is what is remembered, 1 for all of it and 0 for nothing.

Who never looks away has the last true frame to show, the change in it, and remembers nothing: a dream that with the
eyes away is no nearer to what is to be seen there than to that frame sides with nobody, and its memory counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from farworld.envs.environments import PixelEnv
from farworld.train.evaluate import MAX_PSNR
from farworld.train.exams.walks import (
    EXAM_SEED,
    LEFT,
    RIGHT,
    SAME_PSNR,
    TRIES_PER_WALK,
    Advance,
    ExamResult,
    dream,
    is_same_view,
    need_action,
    nobody,
    rounded,
    side_by_side,
    take_walk,
)
from farworld.train.prediction import Predictor

BEFORE_FRAMES = 4  # true ones before the change
AFTER_FRAMES = 3  # true ones that show the change
LOOKS_DOWN = 2
EDITS = {"dig": 2, "place": 1}  # the change, and how often it is made
VISIBLE = 12  # grey levels by which a pixel of the region differs at least
SMALLEST_REGION = 0.01  # of the picture, for a change to be worth looking at


def num_frames(look_away: Sequence[int]) -> int:
    """Frames that are dreamed of one stream of one change, with it and without it."""
    return sum(2 * 2 * turns for turns in look_away)


def edits_of(env: PixelEnv) -> list[str]:
    """The changes that a world's actions can make; ValueError if there are none."""
    names = env.spec.action_vocabulary.names
    edits = [name for name in EDITS if name in names]
    if not edits:
        raise ValueError(f"the dig exam needs an action dig or place; this world has {', '.join(names)}")
    return edits


def region_psnr(frame: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """PSNR in dB over a region (H, W), bool, of two frames (H, W, 3), uint8."""
    error = np.square(frame[region].astype(np.float64) - truth[region]).mean()
    return float(min(MAX_PSNR, 10 * np.log10(255**2 / error))) if error else MAX_PSNR


def remembered(dreams: Sequence[np.ndarray], truths: Sequence[np.ndarray], region: np.ndarray) -> float:
    """The share of the true difference of two frames (H, W, 3) that two dreamed ones have, in a region (H, W)."""
    drawn, true = (first[region].astype(np.float64) - second[region] for first, second in (dreams, truths))
    return float((drawn * true).sum() / np.square(true).sum())


def dig(
    predictor: Predictor,
    env: PixelEnv,
    *,
    streams: int,
    look_away: Sequence[int] = (1, 4, 12),
    seed: int = EXAM_SEED,
    noise_seed: int = 0,
    advance: Advance = nobody,
) -> ExamResult:
    """Examine whether a predictor remembers what was dug and built.

    Args:
        predictor: of `streams` streams.
        env: the real world, in which things can be dug or placed.
        streams: worlds for each change.
        look_away: turns away, and as many back; each is examined.
        seed: the first that is tried.
        noise_seed: of the predictor.
        advance: told the number of frames dreamed.

    Raises:
        ValueError: nothing can be changed there, or no change can be seen.
    """
    if not look_away or min(look_away) < 1 or streams < 1:
        raise ValueError(f"expected --look-away of 1 or more and 1 stream or more, got {list(look_away)} and {streams}")
    edits = edits_of(env)
    rows: list[dict[str, Any]] = []
    videos: dict[str, np.ndarray] = {}
    for edit in edits:
        for turns in look_away:
            with_it, without, plans = _find_pairs(env, edit, turns, streams, seed)
            context = with_it.shape[1] - 2 * turns
            drawn, plainly_drawn = (
                dream(predictor, frames[:, :context], np.tile(plan, (streams, 1)), seed=noise_seed, advance=advance)
                for frames, plan in zip((with_it, without), plans, strict=True)
            )
            scores = []
            last = (frames[:, -1] for frames in (with_it, without, drawn, plainly_drawn))
            looked = _looked_away(drawn[:, turns - 1], with_it[:, -1 - turns], with_it[:, context - 1])
            for changed, plain, seen, plainly_seen in zip(*last, strict=True):
                region = _region(changed, plain)
                scores.append((region_psnr(seen, changed, region), region_psnr(seen, plain, region),
                               remembered((seen, plainly_seen), (changed, plain), region),
                               region_psnr(plain, changed, region), region.mean()))  # fmt: skip
            changed_psnr, plain_psnr, kept, between, share = np.array(scores).T
            rows.append(
                rounded(
                    {
                        "edit": edit, "turns_away": turns, "psnr_to_edited": changed_psnr.mean(),
                        "psnr_to_unedited": plain_psnr.mean(), "margin_db": (changed_psnr - plain_psnr).mean(),
                        "sides_with_edited": float((looked & (changed_psnr > plain_psnr)).mean()),
                        "remembered": (looked * kept).mean(), "looked_away": float(looked.mean()),
                        "psnr_between_both": between.mean(), "region": share.mean(),
                    }
                )
            )  # fmt: skip
            videos[f"{edit}, {turns} turns away"] = side_by_side(with_it[0, context:], without[0, context:], drawn[0])
    sides = {f"{row['edit']}_{row['turns_away']}_sides_with_edited": row["sides_with_edited"] for row in rows}
    summary = {
        "remembered": float(np.mean([row["remembered"] for row in rows])),
        "looked_away": float(np.mean([row["looked_away"] for row in rows])),
        "sides_with_edited": float(np.mean([*sides.values()])),
        "psnr_to_edited": float(np.mean([row["psnr_to_edited"] for row in rows])),
        "psnr_to_unedited": float(np.mean([row["psnr_to_unedited"] for row in rows])),
        "margin_db": float(np.mean([row["margin_db"] for row in rows])),
        **sides,
        **{f"{row['edit']}_{row['turns_away']}_remembered": row["remembered"] for row in rows},
    }
    notes = [
        f"region: pixels that differ by {VISIBLE} grey levels or more between the world with and without the change, "
        f"when the eyes are back; worlds where it is less than {SMALLEST_REGION:.0%} of the picture, or where the view "
        f"does not come back within {SAME_PSNR:g} dB, are left out",
        f"{streams} worlds for each row, seeds from {seed} on; videos: truth with the change, without it, dream",
    ]
    return ExamResult({"name": "dig", "summary": rounded(summary), "series": {}, "table": rows, "notes": notes}, videos)


def _looked_away(drawn: np.ndarray, away: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Which dreamed frames (B, H, W, 3) are nearer to the true ones with the eyes away than to those before, (B,)."""
    errors = (np.square(drawn.astype(np.float64) - truth).mean(axis=(1, 2, 3)) for truth in (away, before))
    return np.less(*errors)


def _region(changed: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """Where two frames (H, W, 3) differ visibly, (H, W), bool."""
    return np.abs(changed.astype(np.int16) - plain).max(axis=-1) >= VISIBLE


def _find_pairs(
    env: PixelEnv, edit: str, turns: int, streams: int, first_seed: int
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Walks with a change and the same without it, each (B, T + 1, H, W, 3), and the T actions of either.

    Raises:
        ValueError: no change is seen from enough starts.
    """
    vocabulary = env.spec.action_vocabulary
    idle, change = need_action(vocabulary, ("noop",), "the dig exam"), vocabulary.index(edit)
    away, again = (need_action(vocabulary, names, "the dig exam") for names in (LEFT, RIGHT))
    down = need_action(vocabulary, ("look_down",), "the dig exam")
    before = [idle] * (BEFORE_FRAMES - 1) + [down] * LOOKS_DOWN
    after = [idle] * AFTER_FRAMES + [away] * turns + [again] * turns
    plans = [[*before, *[action] * EDITS[edit], *after] for action in (change, idle)]
    pairs, tries = [], TRIES_PER_WALK * streams
    for seed in range(first_seed, first_seed + tries):
        changed, plain = (take_walk(env, seed, plan) for plan in plans)
        seen = [len(changed) - 1 - 2 * turns, -1]  # the last true frame, and when the eyes are back
        both_stay = all(is_same_view(walk[seen[:1]], walk[seen[1:]]) for walk in (changed, plain))
        if both_stay and _region(changed[-1], plain[-1]).mean() >= SMALLEST_REGION:
            pairs.append((changed, plain))
            if len(pairs) == streams:
                with_it, without = (np.stack(walks) for walks in zip(*pairs, strict=True))
                return with_it, without, plans
    raise ValueError(
        f"of {tries} starts in {env.spec.env_id}, {edit} changes what is seen, and stays, in {len(pairs)}; "
        f"{streams} are wanted"
    )
