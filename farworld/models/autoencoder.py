"""DC-AE: a deep-compression autoencoder for single frames.

Residual down- and up-sampling blocks whose shortcuts average or repeat channels, residual convolution blocks,
and EfficientViT blocks (linear attention) in the last stages. The pixel range is converted here and nowhere
else: frames are uint8 outside, [−1, 1] inside.

Paper: DC-AE, arXiv:2410.10733; as used by FAR, arXiv:2503.19325, Sec. 3.1.

Shape letters: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """Sizes of a DC-AE; each stage halves the resolution once."""

    latent_channels: int
    widths: tuple[int, ...]  # channels of each stage, at 1/2, 1/4, … of the frame size
    encoder_blocks: tuple[int, ...]  # blocks of each stage
    decoder_blocks: tuple[int, ...]
    attention_stages: int = 0  # how many of the last stages are made of EfficientViT blocks
    attention_head_size: int = 32

    def __post_init__(self) -> None:
        for name in ("widths", "encoder_blocks", "decoder_blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks) >= 1:
            raise ValueError(
                "widths, encoder_blocks and decoder_blocks need one entry per stage, got "
                f"{self.widths}, {self.encoder_blocks}, {self.decoder_blocks}"
            )
        if self.widths[-1] % self.latent_channels:
            raise ValueError(
                f"the last width must be a multiple of latent_channels {self.latent_channels}, got {self.widths[-1]}"
            )
        for fewer, more in zip(self.widths, self.widths[1:], strict=False):
            if 4 * fewer % more or more % 4:
                raise ValueError(f"each width must divide 4 times the one before, got {self.widths}")

    @property
    def compression(self) -> int:
        """Frame pixels along one side of a latent pixel."""
        return 2 ** len(self.widths)


class ChannelRMSNorm(nn.Module):
    """RMS norm over the channels of (B, C, H, W), with weight and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; contiguous in channels-last memory."""
        # In x's own dtype: mixed ones miss the fused kernel.
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return (F.rms_norm(x.permute(0, 2, 3, 1), weight.shape, weight, eps=1e-5) + bias).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two 3×3 convolutions and a norm around a shortcut."""

    def __init__(self, channels: int, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.norm(self.conv2(self.activation(self.conv1(x))))


class LinearAttention(nn.Module):
    """ReLU linear attention over all pixels.

    The concatenated projections are read as groups of 3 · head_size channels, each split into q, k and v, as
    the published weights have it.
    """

    def __init__(self, channels: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels, bias=False)
        self.norm_out = ChannelRMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, shortcut included."""
        height, width = x.shape[2:]
        pixels = rearrange(x, "b c h w -> b (h w) c")
        qkv = rearrange(self.to_qkv(pixels), "b n (a s k) -> s b a k n", s=3, k=self.head_size)
        q, k, v = F.relu(qkv[0].float()), F.relu(qkv[1].float()), qkv[2].float()
        v = F.pad(v, (0, 0, 0, 1), value=1.0)  # a row of ones sums the weights
        attended = (v @ k.transpose(-1, -2)) @ q
        attended = (attended[:, :, :-1] / (attended[:, :, -1:] + 1e-15)).to(x.dtype)
        out = self.to_out(rearrange(attended, "b a k n -> b n (a k)"))
        return x + self.norm_out(rearrange(out, "b (h w) c -> b c h w", h=height, w=width))


class GatedConv(nn.Module):
    """The feed-forward part of an EfficientViT block: inverted, depthwise, gated, pointwise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inverted = nn.Conv2d(channels, 8 * channels, 1)
        self.depthwise = nn.Conv2d(8 * channels, 8 * channels, 3, padding=1, groups=8 * channels)
        self.point = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.norm = ChannelRMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, shortcut included."""
        value, gate = self.depthwise(F.silu(self.inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.point(value * F.silu(gate)))


class Down(nn.Module):
    """Halve the resolution; the shortcut averages groups of channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(channels, out_channels // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, H/2, W/2)."""
        shortcut = F.pixel_unshuffle(x, 2).unflatten(1, (self.out_channels, -1)).mean(dim=2)
        return F.pixel_unshuffle(self.conv(x), 2) + shortcut


class Up(nn.Module):
    """Double the resolution; the shortcut repeats channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.repeats = 4 * out_channels // channels
        self.conv = nn.Conv2d(channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x) + x.repeat_interleave(self.repeats, dim=1), 2)


def _blocks(config: AutoencoderConfig, stage: int, count: int, *, decoder: bool) -> list[nn.Module]:
    """The blocks of one stage; encoders use RMS norm and SiLU, decoders batch norm and ReLU."""
    channels = config.widths[stage]
    if stage >= len(config.widths) - config.attention_stages:
        return [
            nn.Sequential(LinearAttention(channels, config.attention_head_size), GatedConv(channels))
            for _ in range(count)
        ]
    if decoder:
        return [ResBlock(channels, nn.BatchNorm2d(channels, eps=1e-5), nn.ReLU()) for _ in range(count)]
    return [ResBlock(channels, ChannelRMSNorm(channels), nn.SiLU()) for _ in range(count)]


class Encoder(nn.Module):
    """(B, 3, H, W) to (B, latent_channels, H/c, W/c)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.widths[0] // 4, 3, padding=1)
        stages: list[nn.Module] = []
        for stage, channels in enumerate(config.widths):
            if stage:
                stages.append(Down(config.widths[stage - 1], channels))
            stages += _blocks(config, stage, config.encoder_blocks[stage], decoder=False)
        self.stages = nn.Sequential(*stages)
        self.conv_out = nn.Conv2d(config.widths[-1], config.latent_channels, 3, padding=1)
        self.latent_channels = config.latent_channels

    def forward(self, x: Tensor) -> Tensor:
        """Encode pixels in [−1, 1]."""
        x = self.stages(F.pixel_unshuffle(self.conv_in(x), 2))
        return self.conv_out(x) + x.unflatten(1, (self.latent_channels, -1)).mean(dim=2)


class Decoder(nn.Module):
    """(B, latent_channels, H/c, W/c) to (B, 3, H, W)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.repeats = config.widths[-1] // config.latent_channels
        self.conv_in = nn.Conv2d(config.latent_channels, config.widths[-1], 3, padding=1)
        stages: list[nn.Module] = []
        for stage in reversed(range(len(config.widths))):
            if stage < len(config.widths) - 1:
                stages.append(Up(config.widths[stage + 1], config.widths[stage]))
            stages += _blocks(config, stage, config.decoder_blocks[stage], decoder=True)
        self.stages = nn.Sequential(*stages)
        self.norm_out = ChannelRMSNorm(config.widths[0])
        self.conv_out = nn.Conv2d(config.widths[0], 12, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode to pixels, about [−1, 1], not clamped."""
        x = self.conv_in(latents) + latents.repeat_interleave(self.repeats, dim=1)
        return F.pixel_shuffle(self.conv_out(F.relu(self.norm_out(self.stages(x)))), 2)


class Autoencoder(nn.Module):
    """DC-AE with the statistics that scale its latents to about zero mean and unit variance."""

    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_shift", torch.zeros(config.latent_channels))
        self.register_buffer("latent_scale", torch.ones(config.latent_channels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """Reconstruct (B, 3, H, W) in [−1, 1]; unscaled latents in between."""
        return self.decoder(self.encoder(pixels))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, H, W, 3), uint8, to scaled latents (B, C, H/c, W/c), float32."""
        latents = self.encoder(to_pixels(frames)).float()
        return (latents - self.latent_shift[:, None, None]) * self.latent_scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, H/c, W/c) to frames (B, H, W, 3), uint8."""
        unscaled = latents / self.latent_scale[:, None, None] + self.latent_shift[:, None, None]
        return to_frames(self.decoder(unscaled.contiguous(memory_format=torch.channels_last)))


def to_pixels(frames: Tensor) -> Tensor:
    """Frames (B, H, W, 3), uint8, to pixels (B, 3, H, W) in [−1, 1], channels-last memory."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W), about [−1, 1], to frames (B, H, W, 3), uint8."""
    return ((pixels.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
