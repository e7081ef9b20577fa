"""A model in parts: FSDP2, for models that do not fit on each GPU together with their gradients, moments and average.

Every rank owns its part of every parameter; those of a block come together while it runs. A part is a `DTensor`, with
which clipping, AdamW and averages work as they are. Checkpoints are put together on the first rank, and so are those of
one process: any number of ranks, sharded or not, goes on from them. `torch.distributed.checkpoint` would have its own
format, and with `get_state_dict` a step without gradients before it loads and moments for all parameters, which those
that never had a gradient lack.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from farworld.models.far import FAR
from farworld.train.ranks import Ranks

Tree = TypeVar("Tree")


def shard(model: FAR, ranks: Ranks, dtype: torch.dtype) -> None:
    """Leave this rank its part of a model that is the same on all ranks.

    Args:
        model: on the CPU; its parts go to the rank's device, block by block.
        ranks: more than one.
        dtype: in which parameters come together to compute; gradients are summed up in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # The blocks work on nothing in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(.*\) returned a view tensor")
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    # Inputs stay as they are: a timestep of 0 to 1000 is too fine for bfloat16.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    groups: list[nn.Module | list[nn.Module]] = []
    for block in model.blocks:
        assert isinstance(block.modulation_1, nn.Linear) and isinstance(block.modulation_2, nn.Linear)
        groups += [[block.modulation_1, block.modulation_2], block]  # modulations are computed ahead of the blocks
    for group in (*groups, model):
        # The outermost as well, or an average that takes no backward pass would stay whole.
        fully_shard(group, mesh=mesh, mp_policy=policy, reshard_after_forward=True)  # type: ignore[arg-type]


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is in parts: then it runs on all ranks, or on none."""
    return isinstance(next(model.parameters()), DTensor)


def whole(tree: Tree) -> Tree:
    """The tensors of a tree, those in parts put together on the CPU of the first rank; all ranks take part."""

    def joined(leaf: object) -> object:
        if not isinstance(leaf, DTensor):
            return leaf
        tensor = leaf.full_tensor()
        return tensor.cpu() if dist.get_rank() == 0 else leaf

    return tree_map(joined, tree)


def own_part(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have, if `like` of the same shape is in parts; else the tensor."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    mine = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return mine.clone()  # it would keep the whole alive


def own_parts(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `own_part`, of each tensor by its name."""
    return {name: own_part(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()}
