"""Fig. 6: FlexRoPE against other ways to go beyond the trained length.

    python benchmarks/paper/flexrope.py --out DIR [--data DATASET] [--seeds 1]

The paper: a FAR that was trained on short clips stays good on videos of up to 16 times that length if at test time a
linear decay with distance, the same for all heads, is added to RoPE (FlexRoPE); extrapolated RoPE, interpolated RoPE
and ALiBi lose quality.

Here: a small FAR without a long-term stream, trained on clips of 16 frames with RoPE, predicts the next frame after up
to 256 true ones, with its positions extrapolated, interpolated (all distances squeezed into the trained range), and
with FlexRoPE; and one trained with ALiBi in place of the rotation by time. Prediction from true context, not a
rollout: small models lose a rollout of 256 frames whatever their positions. FlexRoPE's slope is chosen on one half
of the held-out episodes at the longest length, and all ways are judged on the other half. "RoPE cut" is shown no more
of the same clips than it was trained on, which costs less than any other way. FlexRoPE need not beat it to be the best
of the four; whether it does is said.
"""

from __future__ import annotations

import numpy as np
from study import Clips, Difference, Result, Study, difference, main, mean_and_error, sheet_of, with_positions

from farworld.line_plot import line_plot
from farworld.models.attention import Positions
from farworld.rollout import Rollout
from farworld.world_model import WorldModel

SLOPES = (0.05, 0.1, 0.2, 0.4, 0.8)
PREDICTED = 8  # frames at each length, the last ones, but not more than half of the trained length
CUT = "RoPE cut"
RIVALS = ("RoPE extrapolated", "RoPE interpolated", "ALiBi")


def next_frames(world: WorldModel, clips: Clips, count: int, num_steps: int) -> np.ndarray:
    """The last frames of clips, each from all true frames before it.

    Args:
        world: predicts.
        clips: N of F frames.
        count: of the frames to predict.
        num_steps: denoising steps.

    Returns:
        (N, count, H, W, 3), uint8.
    """
    rollout = Rollout(world, batch_size=len(clips.frames), num_steps=num_steps, context_frames=clips.length)
    shown = clips.length - count
    rollout.prime_latents(
        clips.latents[:, :shown].to(world.device), clips.actions[:, :shown], seed=list(range(len(clips.frames)))
    )
    drawn = [
        rollout.decode(rollout.peek_then_observe(clips.actions[:, t], clips.frames[:, t]))
        for t in range(shown, clips.length)
    ]
    return np.stack(drawn, axis=1)


def judge(gains: dict[str, Difference]) -> bool:
    """Whether FlexRoPE is clearly better than each of the others."""
    return all(gain.mean > 0 and gain.is_clear for gain in gains.values())


def flexrope(study: Study) -> Result:
    """FlexRoPE, RoPE extrapolated and interpolated, and ALiBi, beyond the trained length."""
    scale, trained = study.scale, study.scale.clip
    count = min(PREDICTED, trained // 2)
    lengths = [trained * factor for factor in scale.lengths]
    longest = lengths[-1]
    everything = study.clips(longest, 1)
    middle = everything.episodes[len(everything.episodes) // 2]
    halves = (everything.episodes < middle, everything.episodes >= middle)
    choosing, judging = (everything.part(np.flatnonzero(half)) for half in halves)
    far = study.trained("far", study.short())
    biased = study.trained("alibi", study.short("positions=alibi"))

    def lpips(worlds: list[WorldModel], clips: Clips) -> tuple[np.ndarray, np.ndarray]:
        """(S, N), and the frames of the first seed's."""
        drawn = [next_frames(world, clips, count, scale.denoising_steps) for world in worlds]
        truth = clips.frames[:, -count:]
        return np.stack([study.score(each, truth)["lpips"] for each in drawn]), drawn[0]

    def placed(positions: Positions) -> list[WorldModel]:
        return [with_positions(world, positions) for world in far]

    by_slope = {slope: float(lpips(placed(Positions.flex_rope(slope)), choosing)[0].mean()) for slope in SLOPES}
    slope = min(by_slope, key=by_slope.__getitem__)
    ways = {
        "RoPE extrapolated": lambda length: far,
        "RoPE interpolated": lambda length: placed(Positions.interpolated(trained_frames=trained, num_frames=length)),
        "ALiBi": lambda length: biased,
        "FlexRoPE": lambda length: placed(Positions.flex_rope(slope)),
        CUT: lambda length: far,
    }
    found: dict[str, dict[int, np.ndarray]] = {name: {} for name in ways}
    rows, shown = [], []
    for name, worlds_of in ways.items():
        for length in lengths:
            seen = judging.first(length)
            values, drawn = lpips(worlds_of(length), seen.last(trained) if name == CUT else seen)
            found[name][length] = values
            if length == longest:
                shown.append(drawn)
        cells = {f"{length} frames": mean_and_error(found[name][length], judging.episodes) for length in lengths}
        rows.append({"LPIPS after": name, **cells})
    gains = {
        name: difference(found[name][longest], found["FlexRoPE"][longest], judging.episodes) for name in (*RIVALS, CUT)
    }
    beats = {name: gains[name] for name in RIVALS}
    lines = {name: [(length, float(values.mean())) for length, values in of.items()] for name, of in found.items()}
    return Result(
        title="Fig. 6, FlexRoPE beyond the trained length",
        paper=f"with FlexRoPE a model goes on to {scale.lengths[-1]} times its trained length, where extrapolated and "
        "interpolated RoPE and ALiBi lose quality.",
        setup=f"{study.describe_training(study.short())} of {trained} frames; the last {count} frames of held-out "
        f"clips, each from all true frames before it, in {scale.denoising_steps} Euler steps; {len(judging.frames)} "
        f"clips, each of another episode. FlexRoPE's slope is {slope}, chosen on {len(choosing.frames)} others (LPIPS "
        + ", ".join(f"{value:.4f} at {each}" for each, value in by_slope.items())
        + ").",
        rows=rows,
        rule=f"at {longest} frames FlexRoPE's LPIPS is clearly below that of {', '.join(RIVALS[:-1])} and {RIVALS[-1]} "
        "(two standard errors, and in every training seed)",
        reproduced=judge(beats),
        found="LPIPS minus FlexRoPE's: " + ", ".join(f"{name} {gain}" for name, gain in beats.items()),
        notes=(f"Shown only the last {trained} frames RoPE has LPIPS minus FlexRoPE's of {gains[CUT]}.",),
        figure=line_plot(lines, x_label="frames of a clip", y_label="LPIPS of the next frame", log_x=True, marks=True),
        sheet=sheet_of(judging.frames[:, -count:], shown),
    )


if __name__ == "__main__":
    main("flexrope", flexrope)
