"""LPIPS v0.1: the distance of two images in the features of an AlexNet, weighted as people see differences.

A loss of the autoencoder and a score. The weights come with the package, in `assets/lpips/`.

Paper: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv:1801.03924.

Shape letters: N images, C channels, H W height and width.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from farworld.checkpoint import load_weights

WEIGHTS = "alex_v0.1.safetensors"
SMALLEST = 31  # pixels, height and width; smaller images have nothing left after the second pooling
# Mean and standard deviation of ImageNet's pixels, in [−1, 1].
MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """AlexNet's convolutions, and one non-negative weight for each channel behind each of their ReLUs."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (channels, out_channels, kernel, stride, padding) in enumerate(
            [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
        ):
            layers += [nn.MaxPool2d(3, 2)] if i in (1, 2) else []
            layers += [nn.Conv2d(channels, out_channels, kernel, stride, padding), nn.ReLU()]
            setattr(self, f"lin{i}", nn.Conv2d(out_channels, 1, 1, bias=False))
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, references: Tensor, *, unit_range: bool = False) -> Tensor:
        """The distance of each image from its reference, (N,); 0 for equal ones, symmetric, differentiable.

        Args:
            images: (N, 3, H, W), float, in [−1, 1], at least 31 pixels high and wide.
            references: likewise, of the same shape.
            unit_range: both are in [0, 1] instead, and rescaled. (FAR's evaluation does not rescale them: its
                published values are those of images in [0, 1] without this flag.)

        Raises:
            ValueError: the shapes differ, or are not of images of this size.
        """
        shape = tuple(images.shape)
        if shape != tuple(references.shape) or len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS expects two batches of the same shape (images, 3, height, width), at least {SMALLEST} pixels "
                f"high and wide, got {shape} and {tuple(references.shape)}; enlarge smaller images"
            )
        if unit_range:
            images, references = 2 * images - 1, 2 * references - 1
        pairs = zip(self._normalised_features(images), self._normalised_features(references), strict=True)
        distances = [getattr(self, f"lin{i}")((one - other).square()) for i, (one, other) in enumerate(pairs)]
        return torch.stack([distance.mean(dim=(1, 2, 3)) for distance in distances]).sum(dim=0)

    def _normalised_features(self, x: Tensor) -> list[Tensor]:
        """Behind each ReLU, every pixel's features as a vector of length 1."""
        x, found = (x - self.mean) / self.std, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                # Where no feature is active the root's gradient is infinite, and the ReLU lets none of it through.
                found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found


def weights_file() -> Path:
    """Where the weights belong."""
    return Path(str(resources.files("farworld.assets") / "lpips" / WEIGHTS))


def load_lpips(device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with its weights, in float32.

    Raises:
        FileNotFoundError: the weights are missing; the message says which file goes where.
        ValueError: the file is damaged or holds something else.
    """
    if not (path := weights_file()).is_file():
        raise FileNotFoundError(
            f"LPIPS has no weights: {path} is missing; copy that file from a farworld checkout or wheel"
        )
    model = LPIPS()
    load_weights(model, path)
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
