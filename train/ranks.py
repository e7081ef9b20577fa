"""The processes of a training: one, or as many as `torchrun` starts.

    torchrun --nproc-per-node 8 -m farworld train --data DIR --preset maze-s --out RUN

Each has the whole model, or with --set fsdp=True a part of the world model (`farworld.train.sharding`).
All ranks walk through the stages together. The first one writes: checkpoints, logs, latents, the world.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from farworld.device import choose_device

STEP_TIMEOUT = timedelta(minutes=10)  # how long a rank waits for another in a step before it gives up
WAIT_TIMEOUT = timedelta(days=7)  # while the first rank does what only one can do, such as caching latents


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among those of a training; made by `join_ranks`."""

    device: torch.device
    rank: int = 0
    count: int = 1
    waiting: Any = None  # the group in which ranks wait for the first one

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all ranks are here, however long that takes."""
        if self.count > 1:
            dist.barrier(group=self.waiting)

    def sum(self, values: list[float]) -> list[float]:
        """The sums of some numbers over all ranks, the same on each."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device if self.device.type == "cuda" else "cpu")
        dist.all_reduce(total)
        return total.tolist()

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all ranks, without a gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a module that was not replicated over all ranks."""
        if self.count == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = self.mean(parameter.grad)

    def share(self, num_items: int, num_parts: int) -> list[range]:
        """This rank's items of a step, in parts of equal size.

        Args:
            num_items: of the whole step, all ranks together.
            num_parts: parts of each rank, which it goes through one after the other.

        Raises:
            ValueError: the items can't be shared out evenly.
        """
        parts = self.count * num_parts
        if num_items % parts:
            raise ValueError(
                f"a batch must be a multiple of processes times accumulated parts, {self.count} × {num_parts}, "
                f"got {num_items}; set another world_batch_size, autoencoder_batch_size or accumulate"
            )
        size = num_items // parts
        first = self.rank * num_parts
        return [range((first + part) * size, (first + part + 1) * size) for part in range(num_parts)]

    def replicate(self, model: nn.Module) -> nn.Module:
        """What to call instead of the model, so that the ranks' gradients are averaged."""
        if self.count == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        # Some parameters have no gradient for clips without a long-term context.
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)


@contextlib.contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that `torchrun` has started; without it this one is alone.

    Args:
        device: auto, cpu, cuda or mps; on GPUs each rank of a machine takes its own.

    Raises:
        ValueError: this machine has no such device, or too few GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if count == 1:
        yield Ranks(device=chosen)
        return
    if chosen.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine needs a GPU of its own, there are {torch.cuda.device_count()}; "
                "start fewer with --nproc-per-node"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=STEP_TIMEOUT)
    try:
        waiting = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
        yield Ranks(device=chosen, rank=dist.get_rank(), count=count, waiting=waiting)
    finally:
        dist.destroy_process_group()


def averaged_gradients(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager:
    """Around a part's backward pass: only the last part of a step exchanges gradients between ranks."""
    no_sync = getattr(model, "no_sync", None)
    return contextlib.nullcontext() if last or no_sync is None else no_sync()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor off to the device without waiting for it."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # a thread begins on the first GPU, whichever its rank has
            return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
