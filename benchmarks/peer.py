"""A frame of another installable world model beside one of ours, at its own sizes, on this machine.

    pip install --no-deps torchwm      # its other dependencies are not needed here
    python benchmarks/peer.py [--ckpt dmlab] [--sizes small medium] [--frames 30] [--threads N] [--json]

The peer is the DIAMOND of `torchwm` (PyPI, MIT; version 0.4.2 is known to work): a U-Net that denoises the next 64×64
frame from 4 frames and actions, in 3 Euler steps, in the sizes of its own presets. It ships no weights; random ones
take the same time. Pixels come straight out of it, and what it returns is put back as its newest frame, as its
own imagination does. Ours is a bundled world: one step through the cache with its context full, and the decoder. Both
make one stream, on the CPU, in float32; they take turns frame by frame, so that other load hits both alike. The
figures say what a frame costs, not how good it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any, Literal

import numpy as np
import torch
from command import print_rows, publish, run
from cyclopts import App, Parameter

from farworld.arithmetic import count_flops
from farworld.checkpoint import load_world
from farworld.console import progress_bar
from farworld.rollout import Rollout

Size = Literal["small", "medium", "large"]
NUM_ACTIONS = 18  # of its Atari games
WARM_UP_FRAMES = 3


class Diamond:
    """One stream of torchwm's diffusion world model with random weights."""

    def __init__(self, size: Size) -> None:
        """Build it as its trainer does.

        Raises:
            ImportError: torchwm is not installed.
        """
        try:
            from world_models.configs.diamond_config import DiamondConfig
            from world_models.models.diffusion.diamond_diffusion import DiffusionUNet, EDMPreconditioner, EulerSampler
        except ImportError as error:
            raise ImportError(f"the peer needs torchwm: pip install --no-deps torchwm ({error})") from error
        config = DiamondConfig(preset=size)
        base = config.diffusion_channels[0]
        self.model = DiffusionUNet(
            num_conditioning_frames=config.num_conditioning_frames,
            base_channels=base,
            channel_multipliers=tuple(channels // base for channels in config.diffusion_channels),
            num_res_blocks=config.diffusion_res_blocks,
            cond_dim=config.diffusion_cond_dim,
            action_dim=NUM_ACTIONS,
        ).eval()
        self.sampler = EulerSampler(
            sigma_min=config.sigma_min,
            sigma_max=config.sigma_max,
            rho=config.rho,
            num_steps=config.num_sampling_steps,
            edm_precond=EDMPreconditioner(config.sigma_data, config.p_mean, config.p_std),
        )
        self.facts = {
            "name": f"torchwm {metadata.version('torchwm')} DIAMOND, {size}",
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "frame_size": f"{config.obs_size}x{config.obs_size}",
            "steps": config.num_sampling_steps,
            "context_frames": config.num_conditioning_frames,
        }
        self._frames = torch.rand(1, config.num_conditioning_frames, 3, config.obs_size, config.obs_size)
        self._actions = torch.zeros(1, config.num_conditioning_frames, dtype=torch.int64)
        self._rng = np.random.default_rng(0)

    @torch.inference_mode()
    def step(self) -> None:
        """Generate a frame."""
        action = torch.tensor([[int(self._rng.integers(NUM_ACTIONS))]])
        self._actions = torch.cat([self._actions[:, 1:], action], dim=1)
        shape = tuple(self._frames[:, 0].shape)
        frame = self.sampler.sample(
            self.model, shape, self._frames.device, obs_history=self._frames, actions=self._actions
        )
        self._frames = torch.cat([self._frames[:, 1:], frame[:, None]], dim=1)


class Ours:
    """One stream of a farworld world, its context full."""

    def __init__(self, ckpt: str) -> None:
        world = load_world(ckpt)
        self._rollout = Rollout(world.model)
        self._rng = np.random.default_rng(0)
        self._num_actions = len(world.config.vocabulary)
        context = world.contexts[0]
        self._rollout.prime(context.frames[None], context.actions[None])
        while self._rollout.context_in_use < self._rollout.context_frames:
            self.step()
        self.facts = {
            "name": f"farworld {world.config.name}",
            "parameters": world.model.num_parameters,
            "frame_size": f"{world.config.frame_height}x{world.config.frame_width}",
            "steps": self._rollout.num_steps,
            "context_frames": self._rollout.context_frames,
        }

    def step(self) -> None:
        """Generate a frame."""
        self._rollout.step(int(self._rng.integers(self._num_actions)))


def measure(step: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call by the clock, and of the processor in all threads."""
    began, cpu_began = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - began, time.process_time() - cpu_began


def compare(subjects: list[Diamond | Ours], num_frames: int) -> list[dict[str, Any]]:
    """A row of figures for each; they take turns."""
    seconds: list[list[tuple[float, float]]] = [[] for _ in subjects]
    with progress_bar("measuring", num_frames + WARM_UP_FRAMES, unit="rounds") as advance:
        for index in range(num_frames + WARM_UP_FRAMES):
            for subject, taken in zip(subjects, seconds, strict=True):
                measured = measure(subject.step)
                if index >= WARM_UP_FRAMES:
                    taken.append(measured)
            advance()
    return [
        {
            **subject.facts,
            "gflop_per_frame": round(count_flops(subject.step) / 1e9, 2),
            "median_ms": round(1000 * statistics.median(clock for clock, _ in taken), 1),
            "min_ms": round(1000 * min(clock for clock, _ in taken), 1),
            "median_cpu_ms": round(1000 * statistics.median(cpu for _, cpu in taken), 1),
        }
        for subject, taken in zip(subjects, seconds, strict=True)
    ]


app = App(
    name="peer.py",
    version_flags=(),
    result_action="return_value",
    help="What a frame of torchwm's DIAMOND costs beside one of ours, on a CPU.",
)


@app.default
def peer(
    *,
    ckpt: Annotated[str, Parameter(help="Our world, see `farworld play`.")] = "dmlab",
    sizes: Annotated[tuple[Size, ...], Parameter(consume_multiple=True, negative=(), help="Presets of the peer.")] = (
        "small",
        "medium",
    ),
    frames: Annotated[int, Parameter(help="Frames of each to measure.")] = 30,
    threads: Annotated[int | None, Parameter(help="That torch uses; its own choice without it.")] = None,
    json: Annotated[bool, Parameter(negative=(), help="Also print one JSON object, as the last line.")] = False,
) -> None:
    """Measure both in turns."""
    for name, value in {"--frames": frames, "--threads": threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if threads is not None:
        torch.set_num_threads(threads)
    subjects: list[Diamond | Ours] = [Diamond(size) for size in dict.fromkeys(sizes)]
    rows = compare([*subjects, Ours(ckpt)], frames)
    print_rows(rows)
    publish(
        {"frames": frames, "measured": "one frame to pixels; nothing is drawn"},
        rows,
        device=torch.device("cpu"),
        json=json,
    )


if __name__ == "__main__":
    run(app)
