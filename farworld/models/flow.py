"""Flow matching: the straight path from data (t = 0) to noise (t = 1), and Euler steps back along it.

Shortcut models are told the size of the step as well, a power of two, and reach the point that many small steps reach.

Papers: FAR, arXiv:2503.19325, Sec. 3.1; timesteps as in Stable Diffusion 3, arXiv:2403.03206, Sec. 3.1; shortcut
models, arXiv:2410.12557.
"""

from __future__ import annotations

import math
from itertools import accumulate

import torch
from torch import Tensor


def add_noise(latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """The point at `timestep` on the straight path from latents to noise.

    Args:
        latents: (B, F, C, H, W) or (B, C, H, W), scaled latents.
        noise: same shape, standard normal.
        timestep: (B, F) or (B,), in [0, 1].
    """
    t = timestep[..., None, None, None]
    return (1 - t) * latents + t * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """What the model learns: noise − data, the derivative of the path by t."""
    return noise - latents


def timesteps_of_draws(
    normal: Tensor, uniform: Tensor, *, mean: float = 0.0, std: float = 1.0, pure_noise_ratio: float = 0.0
) -> Tensor:
    """Logit-normal timesteps, each replaced by exactly 1 with probability `pure_noise_ratio`.

    The first Euler step starts from pure noise, which a logit-normal never draws: sampling with one or two
    steps depends on it most.

    Args:
        normal: standard normal draws.
        uniform: draws in [0, 1), of the same shape.
        mean: of the logit.
        std: of the logit.
        pure_noise_ratio: in [0, 1].

    Returns:
        The draws' shape, float32, in (0, 1].
    """
    timestep = torch.sigmoid(mean + std * normal)
    return torch.where(uniform < pure_noise_ratio, torch.ones_like(timestep), timestep)


def euler_timesteps(num_steps: int) -> list[float]:
    """The num_steps + 1 timesteps of an Euler path from noise to data: 1 … 0, evenly spaced."""
    if num_steps < 1:
        raise ValueError(f"the number of denoising steps must be at least 1, got {num_steps}")
    return [1 - step / num_steps for step in range(num_steps + 1)]


def shortcut_timesteps(num_steps: int, finest_steps: int) -> list[float]:
    """The num_steps + 1 timesteps of a path whose steps all have a trained size and start at a multiple of it.

    Evenly spaced where num_steps is a power of two, and where it is more than finest_steps: such small steps are not
    told apart. In between the last steps are half as long as the first ones: three are 1/2, 1/4 and 1/4.

    Args:
        num_steps: at least 1.
        finest_steps: steps of the finest trained size, a power of two.
    """
    even = euler_timesteps(num_steps)
    if num_steps >= finest_steps:
        return even
    long_steps = 1 << (num_steps.bit_length() - 1)
    halved = num_steps - long_steps
    sizes = [1 / long_steps] * (long_steps - halved) + [0.5 / long_steps] * (2 * halved)
    return [1 - done for done in accumulate(sizes, initial=0.0)]


def shortcut_size(step: float, finest_steps: int) -> float:
    """The largest trained step size that is not above `step`; the finest one for smaller steps."""
    return max(2.0 ** -math.ceil(-math.log2(step)), 1 / finest_steps)


def shortcuts_of_draws(level: Tensor, multiple: Tensor, finest_steps: int) -> tuple[Tensor, Tensor]:
    """Steps to learn from two halves: each size above the finest alike, from any multiple of it.

    Args:
        level: draws in [0, 1), for the sizes.
        multiple: draws in [0, 1), of the same shape, for where they start.
        finest_steps: steps of the finest size, a power of two.

    Returns:
        Two tensors of that shape, float32: step sizes 1, 1/2, … 2/finest_steps, and timesteps in (0, 1] to step from.
    """
    size = 0.5 ** torch.floor(level * (finest_steps.bit_length() - 1))
    return size, (torch.floor(multiple / size) + 1) * size


def official_timesteps(num_steps: int) -> list[float]:
    """The num_steps + 1 timesteps of the official sampler: evenly spaced from 1 to 0.001, then 0.

    Its last step changes next to nothing, so that the rollout has `euler_timesteps` instead, whatever the weights.
    """
    if num_steps < 1:
        raise ValueError(f"the number of denoising steps must be at least 1, got {num_steps}")
    # In float32, as the official sampler has them: its timesteps are these, times 1000.
    return [*torch.linspace(1.0, 0.001, num_steps, dtype=torch.float64).float().tolist(), 0.0]


def timestep_of_draw(u: Tensor) -> Tensor:
    """The official grid of training timesteps, 1 … 1000, for draws in [0, 1): a small draw is a lot of noise.

    Returns:
        `u`'s shape, float32, on the timestep embedding's scale.
    """
    return 1000.0 - (u * 1000).long().float()


def euler_step(latents: Tensor, velocity: Tensor, now: float, then: float) -> Tensor:
    """Move from timestep `now` to timestep `then` along the velocity."""
    return latents + (then - now) * velocity
