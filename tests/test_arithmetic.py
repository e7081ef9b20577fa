"""What is counted as arithmetic, and where the time of nested parts goes."""

import time

import pytest
import torch
from test_far import tiny_world
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from farworld.arithmetic import count_flops, matmul_rate
from farworld.breakdown import Stopwatch
from farworld.models.packed import can_pack, pack_linears
from farworld.models.packed_conv import PackedConv, can_pack_convolutions
from farworld.rollout import Rollout

CPU = torch.device("cpu")


def test_attention_on_a_cpu_is_counted():
    q, k = torch.zeros(2, 3, 5, 16), torch.zeros(2, 3, 7, 16)
    assert count_flops(lambda: scaled_dot_product_attention(q, k, k)) == 2 * (2 * 2 * 3 * 5 * 7 * 16)


@pytest.mark.skipif(not can_pack_convolutions(), reason="this PyTorch has no oneDNN convolutions for this CPU")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_a_packed_convolution_counts_like_the_one_it_was(bias, added):
    conv, x = nn.Conv2d(16, 32, 3, padding=1, bias=bias), torch.zeros(2, 16, 8, 8)
    packed, other = PackedConv(conv, [1, 16, 8, 8]), torch.zeros(2, 32, 8, 8) if added else None
    with torch.inference_mode():
        assert count_flops(lambda: packed(x, other)) == count_flops(lambda: conv(x)) > 0


@pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN linear layers for this CPU")
def test_a_packed_rollout_counts_like_the_one_it_was():
    counts = []
    for packed in (False, True):
        world = tiny_world()
        if packed:
            pack_linears(world)
        rollout = Rollout(world, context_frames=12)
        config = world.config
        rollout.prime(
            torch.zeros(1, 1, config.frame_height, config.frame_width, 3, dtype=torch.uint8), torch.zeros(1, 0).long()
        )
        counts.append(count_flops(lambda rollout=rollout: rollout.step(0)))
    assert counts[0] == counts[1] > 0


def test_the_rate_is_one_of_this_machine():
    assert 1e6 < matmul_rate(CPU, torch.float32, seconds=0.05) < 1e15


def test_a_part_inside_another_counts_once(monkeypatch):
    """The outer part has only what is its own, so that parts add up to the whole."""
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(CPU)

    def inner():
        return "result"

    with watch.part("outer"):  # from 0
        assert watch.watched("inner", inner)() == "result"  # 1 to 3
        with pytest.raises(ValueError), watch.part("failing"):  # 6 to 10
            raise ValueError
    assert watch.seconds == {"outer": 1.0 + 3.0 + 5.0, "inner": 2.0, "failing": 4.0}
