"""Training on CUDA: what is compiled, fused or rounded there learns what the plain model on it learns."""

import copy
import math

import pytest
import torch
from test_compiled_training import loss_and_gradients, small_model
from test_flex_attention import HEAD_SIZE, HEADS, POSITIONS, layout_of
from test_train import SMALL, bars, train  # noqa: F401 - a fixture

from farworld.models import flex_attention
from farworld.models.attention import QKV, ClipAttention
from farworld.models.flex_attention import FlexClipAttention
from farworld.train.config import PRESETS, override
from farworld.train.ranks import Ranks
from farworld.train.run import uses_bfloat16
from farworld.train.world import new_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Each test compiles for itself: in one process there may be so many kernels of a function and no more."""
    torch.compiler.reset()
    flex_attention._compiled.cache_clear()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The length of the difference, of the expected one's."""
    return float((found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-9))


@pytest.mark.parametrize("num_frames", [3, 4, 5, 40])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_flex_kernel_and_its_gradients_equal_the_dense_mask(dtype, positions, num_frames):
    """In float64 the dense mask is the truth, from which each kernel may be as far as its dtype rounds."""
    layout = layout_of(num_frames, num_frames // 2, POSITIONS[positions], fine_tokens=16, device=CUDA)
    generator = torch.Generator().manual_seed(0)
    counts = [len(layout[f"{name}_frames"]) * layout[f"{name}_tokens"] for name in ("fine", "coarse")]
    drawn = [torch.randn(3, 2, HEADS, count, HEAD_SIZE, generator=generator) for count in counts if count]
    results = []
    for kind, precision in ((ClipAttention, torch.float64), (FlexClipAttention, dtype)):
        streams = [QKV(*(x.to(CUDA, dtype).to(precision).requires_grad_() for x in xs)) for xs in drawn]
        coarse = streams[1] if len(streams) > 1 else None
        outputs = [x for x in kind(**{**layout, "dtype": precision})(0, streams[0], coarse) if x is not None]
        sum((x * torch.linspace(-1, 1, x.numel(), device=CUDA).view_as(x)).sum() for x in outputs).backward()
        results.append(outputs + [x.grad for stream in streams for x in stream])
    tolerance = 2e-2 if dtype is torch.bfloat16 else 5e-3  # TF32 products in the kernel
    for expected, found in zip(*results, strict=True):
        assert relative(found, expected) < tolerance


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_blocks_and_flex_attention_give_the_loss_and_gradients_of_plain_ones(precision):
    """For clips of several lengths, and with the model's own predictions as context."""
    setting = f"precision={precision}"
    plain = small_model("num_layers=3", setting).to(CUDA)
    fast = copy.deepcopy(plain)
    fast.clip_attention = FlexClipAttention
    fast.compile_blocks()
    tolerance = 3e-2 if precision == "bfloat16" else 5e-3
    for length in (12, 9, 7, 12):
        for own_context_ratio in (0.0, 1.0):
            expected, found = (
                loss_and_gradients(model, length, own_context_ratio, setting, device=CUDA) for model in (plain, fast)
            )
            assert relative(found[0], expected[0]) < tolerance
            together = [torch.cat([gradient.flatten() for gradient in each[1].values()]) for each in (found, expected)]
            assert relative(*together) < 2 * tolerance


def test_a_step_in_bfloat16_learns_on_the_gpu(bars, tmp_path):  # noqa: F811
    """As an automatic choice, with flex attention and compiled blocks, from the first stage to the exported world."""
    ranks = Ranks(device=CUDA)
    config = override(PRESETS["maze-xs"], [*SMALL, "precision=auto", "compile=True"])
    assert uses_bfloat16(config, CUDA) == torch.cuda.is_bf16_supported()
    assert new_state(config, 3, ranks).model.clip_attention is FlexClipAttention
    settings = ["precision=auto", "compile=True", "autoencoder_steps=5", "world_steps=5", "log_every=1"]
    run, result = train(tmp_path / "run", bars, *settings, ranks=ranks)
    assert result["device"] == "cuda" and result["world_steps"] == 5 and math.isfinite(result["psnr"])
    assert all(tensor.isfinite().all() for tensor in run.load_checkpoint("world")["model"].values())


def test_a_run_from_the_gpu_goes_on_on_the_cpu(bars, tmp_path):  # noqa: F811
    """And the other way round: checkpoints are of no device."""
    steps = ["autoencoder_steps=2", "world_steps=2"]
    train(tmp_path / "run", bars, *steps, ranks=Ranks(device=CUDA))
    train(tmp_path / "run", bars, "autoencoder_steps=2", "world_steps=3", resume=True)
    _, result = train(
        tmp_path / "run", bars, "autoencoder_steps=2", "world_steps=4", resume=True, ranks=Ranks(device=CUDA)
    )
    assert result["world_steps"] == 4
