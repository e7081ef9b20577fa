"""Fig. 9: the length of the short-term window.

    python benchmarks/paper/short_window.py --out DIR [--data DATASET] [--seeds 1]

The paper: quality improves with a longer short-term window, and saturates.

Here: a small long short-term FAR is trained with windows of 1, 2, 4, 8 and 16 full frames, all before them being seen
coarsely, on the same clips and with as many frames to learn from. Held-out clips are shown in full length but for the
frames that are rolled out, under the true actions.
"""

from __future__ import annotations

import numpy as np
from study import Result, Study, difference, main, roll_out, sheet_of, stacked

from farworld.line_plot import line_plot
from farworld.train.prediction import Scores

COARSENESS = 2  # of all; its run at the usual window is one of coarse_resolution's
LATE_SHARE = 0.25  # of the whole gain, that the last doubling may bring


def saturates(gain: float, is_clear: bool, late: float) -> bool:
    """Whether a clear gain from the shortest to the best window is nearly all there before the last doubling."""
    return is_clear and gain > 0 and late <= LATE_SHARE * gain


def short_window(study: Study) -> Result:
    """Short-term windows of 1 to 16 frames: quality of rollouts."""
    scale = study.scale
    clips, shown = study.clips(scale.long_clip), scale.long_clip - scale.predict
    truth = clips.frames[:, shown:]
    lpips: dict[int, np.ndarray] = {}
    scores: dict[str, list[Scores]] = {}
    rollouts = []
    for window in scale.windows:
        settings = study.long(window=window, coarseness=COARSENESS)
        worlds = study.trained(f"window-{window}-coarse-{COARSENESS}", settings)
        drawn = [roll_out(world, clips, shown, num_steps=scale.denoising_steps) for world in worlds]
        scores[f"{window}"] = [study.score(each, truth) for each in drawn]
        lpips[window] = stacked(scores[f"{window}"], "lpips")
        rollouts.append(drawn[0])
    first, before, last = scale.windows[0], scale.windows[-2], scale.windows[-1]
    best = min(scale.windows, key=lambda window: lpips[window].mean())
    whole = difference(lpips[first], lpips[best], clips.episodes)
    late = difference(lpips[before], lpips[last], clips.episodes)
    points = [(window, float(values.mean())) for window, values in lpips.items()]
    return Result(
        title="Fig. 9, length of the short-term window",
        paper="quality improves with a longer short-term window, and saturates.",
        setup=f"{study.describe_training(settings)} of up to {scale.long_clip} frames, long-term patches of "
        f"{COARSENESS}× the side; {len(clips.frames)} held-out clips, {shown} frames shown and "
        f"{scale.predict} rolled out in {scale.denoising_steps} Euler steps each.",
        rows=study.table("window", scores, clips, shown),
        rule=f"LPIPS of the best window is clearly below that of window {first} (two standard errors, and in every "
        f"training seed), and going from {before} to {last} brings at most {LATE_SHARE:.0%} of that",
        reproduced=saturates(whole.mean, whole.is_clear, late.mean),
        found=f"best window {best}; LPIPS {first} minus {best}: {whole}; {before} minus {last}: {late}",
        figure=line_plot({"LPIPS": points}, x_label="window, frames", y_label="LPIPS", log_x=True, marks=True),
        sheet=sheet_of(truth, rollouts),
    )


if __name__ == "__main__":
    main("short_window", short_window)
