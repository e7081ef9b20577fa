"""A patch discriminator and its losses: which patches of a frame look decoded?

Used by the autoencoder stage as VQGAN uses it: hinge loss, and a weight that makes the adversarial gradient as
long as that of the reconstruction, measured at the decoder's last layer.

Papers: pix2pix, arXiv:1611.07004 (the discriminator); VQGAN, arXiv:2012.09841, Eq. 7 (the weight); as used by FAR.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_WEIGHT = 1e4


class PatchDiscriminator(nn.Module):
    """Strided 4×4 convolutions with batch norm, then one logit for each patch; positive means real."""

    def __init__(self, width: int, num_layers: int) -> None:
        """Patches of 70 pixels with three layers, 34 with two, 16 with one.

        Args:
            width: channels of the first layer; doubled by each of the next, up to eightfold.
            num_layers: layers that halve the resolution.
        """
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for i in range(1, num_layers + 1):
            out_channels = width * min(2**i, 8)
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(channels, out_channels, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.LeakyReLU(0.2),
            ]
            channels = out_channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, stride=1, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [−1, 1] to logits (B, 1, h, w)."""
        return self.layers(pixels)


def smallest_frame(num_layers: int) -> int:
    """The least frame height and width that leaves a patch."""
    return 3 * 2**num_layers


def discriminator_loss(real_logits: Tensor, decoded_logits: Tensor) -> Tensor:
    """Hinge: real patches are to reach 1, decoded ones −1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + decoded_logits).mean())


def adversarial_loss(decoded_logits: Tensor) -> Tensor:
    """What the decoder minimises: its patches are to look real."""
    return -decoded_logits.mean()


def balanced_loss(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    decoded: Tensor,
    last_layer: Tensor,
    gan_weight: float,
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> tuple[Tensor, Tensor]:
    """Reconstruction + weight · adversarial, the weight being the quotient of their gradients at the last layer.

    Everything up to the frame is differentiated once, not once for each loss and once more for the sum.

    Args:
        reconstruction_loss: scalar, a function of `decoded`; its graph up to there is used up.
        adversarial_loss: likewise.
        decoded: (B, 3, H, W), what the decoder made, with its graph.
        last_layer: the decoder's last weight.
        gan_weight: a factor of the weight.
        mean: of a gradient over all processes that train together.

    Returns:
        A scalar whose value is the sum's and whose gradient, of everything behind `decoded`, is the sum's with the
        weight held constant; and the weight.
    """
    (by_reconstruction,) = torch.autograd.grad(reconstruction_loss, decoded)
    (by_discriminator,) = torch.autograd.grad(adversarial_loss, decoded)
    norms = [
        mean(torch.autograd.grad(decoded, last_layer, gradient, retain_graph=True)[0]).norm()
        for gradient in (by_reconstruction, by_discriminator)
    ]
    weight = gan_weight * (norms[0] / (norms[1] + 1e-4)).clamp(max=LARGEST_WEIGHT)
    surrogate = (decoded * (by_reconstruction + weight * by_discriminator)).sum()
    value = (reconstruction_loss + weight * adversarial_loss).detach()
    return surrogate - surrogate.detach() + value, weight
