"""Batch norm over the batches of all ranks, so that several processes learn what one would have learnt."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from farworld.train.ranks import Ranks


class RanksBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all ranks together; their batches are equally large.

    On any device: `torch.nn.SyncBatchNorm` knows GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; in evaluation no other rank is asked."""
        if not self.training:
            return super().forward(x)
        count, over = dist.get_world_size(), (0, 2, 3)
        mean = all_reduce(x.float().mean(over)) / count
        centred = x.float() - mean[:, None, None]
        variance = all_reduce(centred.square().mean(over)) / count
        self._remember(mean.detach(), variance.detach(), count * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, num_values: int) -> None:
        """Update the statistics for evaluation, as `torch.nn.BatchNorm2d` does."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (num_values / (num_values - 1)), self.momentum)


def share_batch_norms(module: nn.Module, ranks: Ranks) -> None:
    """Put `RanksBatchNorm` in the place of all batch norms of a module, names unchanged; alone nothing is to share."""
    if ranks.count == 1:
        return
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            assert child.momentum is not None
            shared = RanksBatchNorm(child.num_features, child.eps, child.momentum).to(child.weight.device)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared)
        else:
            share_batch_norms(child, ranks)
