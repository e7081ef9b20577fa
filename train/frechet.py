"""The Fréchet distance of two sets of videos, in the features of some network.

FVD is this distance in the features of I3D (`farworld.train.i3d`), one vector a video. Where those weights are not at
hand, AlexNet's features stand in: the weights of LPIPS, which come with the package. Their figure is another measure
and carries another name.

Shape letters: B videos, F frames, N feature vectors, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from farworld.train.lpips import LPIPS

CLIP_FRAMES = 8  # of one feature vector of the stand-in
FVD_VIDEOS = 256  # that published values are measured with


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The squared Wasserstein-2 distance of the Gaussians through two sets of vectors, (N, D) each, in float64.

    With S = AᵀA and T = BᵀB the trace of (S T)^½ is the sum of the singular values of A Bᵀ, so that no root of a
    matrix is taken: it is exact for fewer vectors than features too, where covariances have no full rank.

    Raises:
        ValueError: different numbers of features, or fewer than two vectors.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ValueError(
            f"a Fréchet distance needs two or more vectors of the same length on each side, got {one.shape} and "
            f"{other.shape}; use more videos"
        )
    means = [features.mean(axis=0) for features in (one, other)]
    roots: list[np.ndarray] = []
    for features, mean in zip((one, other), means, strict=True):
        root = (features - mean) / np.sqrt(len(features) - 1)
        roots.append(np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root)
    spread = sum(float(np.square(root).sum()) for root in roots)
    overlap = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return max(0.0, float(np.square(means[0] - means[1]).sum()) + spread - 2 * overlap)


class ClipFeatures:
    """What stands in for I3D: of every 8 frames, what AlexNet sees in them and how much of it changes.

    The first half are the last convolution's channels, averaged over places and frames; the second their mean change
    from frame to frame at each place, which frozen videos lack and shuffled ones have too much of.
    """

    def __init__(self, lpips: LPIPS) -> None:
        self._lpips = lpips

    @torch.inference_mode()
    def __call__(self, videos: Tensor) -> Tensor:
        """Videos (B, F, H, W, 3), uint8, as large as LPIPS takes, to (N, 512), float32, one video after the other.

        A last clip of a single frame is left out.
        """
        device, rows = self._lpips.mean.device, []
        for video in videos:
            images = video.permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
            seen = self._lpips.features((images - self._lpips.mean) / self._lpips.std)
            for clip in seen.split(CLIP_FRAMES):
                if len(clip) > 1:
                    changes = (clip[1:] - clip[:-1]).abs()
                    rows.append(torch.cat([clip.mean(dim=(0, 2, 3)), changes.mean(dim=(0, 2, 3))]))
        return torch.stack(rows).cpu()
