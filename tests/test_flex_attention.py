"""FlexAttention over whole clips sees what the dense mask sees."""

import pytest
import torch
from test_far import randomise

from farworld.models import flex_attention
from farworld.models.attention import QKV, ClipAttention, Positions
from farworld.models.far import CLEAN_SHORT_TERM, FAR, FARConfig
from farworld.models.flex_attention import FlexClipAttention

HEADS, HEAD_SIZE, WINDOW = 2, 16, 4
POSITIONS = {"plain": Positions(), "FlexRoPE": Positions.flex_rope(0.3), "ALiBi": Positions.alibi()}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """The reference that FlexAttention itself has, operation by operation."""
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def streams(layout: dict) -> list[QKV | None]:
    generator = torch.Generator().manual_seed(0)
    counts = (
        len(layout["fine_frames"]) * layout["fine_tokens"],
        len(layout["coarse_frames"]) * layout["coarse_tokens"],
    )
    drawn = [torch.randn(3, 2, HEADS, count, HEAD_SIZE, generator=generator) for count in counts]
    return [QKV(*xs) if xs.shape[3] else None for xs in drawn]


def layout_of(num_frames: int, first_fine: int, positions: Positions, *, window: int = WINDOW, **changes) -> dict:
    return {
        "window": window, "fine_frames": range(first_fine, num_frames),
        "coarse_frames": range(max(first_fine, num_frames - window, 0)), "fine_tokens": 5, "coarse_tokens": 2,
        "positions": positions, "num_heads": HEADS, "dtype": torch.float32, **changes,
    }  # fmt: skip


def compare(layout: dict, flex: type[FlexClipAttention] = FlexClipAttention) -> None:
    fine, coarse = streams(layout)
    with torch.no_grad():
        expected, found = (kind(**layout)(0, fine, coarse) for kind in (ClipAttention, flex))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=2e-6)
    assert (found[1] is None) == (coarse is None)
    if coarse is not None:
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 11, 40])  # around the 4-frame window, and of several kernel blocks
@pytest.mark.parametrize("layout", ["sliding", "anchored", "half of it coarse only"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_flex_attention_equals_the_dense_mask(positions, layout, num_frames):
    first_fine = {"sliding": 0, "anchored": max(0, num_frames - WINDOW)}.get(layout, num_frames // 2)
    compare(layout_of(num_frames, first_fine, POSITIONS[positions]))


@pytest.mark.parametrize("window", [1, 2, 39, 40, 41, 1 << 40])  # the last one is a model without a long-term stream
def test_any_window_is_that_of_the_dense_mask(window):
    compare(layout_of(40, 0, Positions(), window=window))


def test_a_model_gives_the_same_velocities_with_either(monkeypatch):
    config = FARConfig(
        latent_channels=4, latent_height=4, latent_width=4, num_actions=3, num_layers=2, num_heads=HEADS,
        head_size=HEAD_SIZE, context_patch_size=2, short_term_frames=3, copy_gate=True,
    )  # fmt: skip
    model = FAR(config)
    randomise(model)
    noisy, context = torch.randn(2, 6, 4, 4, 4), torch.randn(2, 8, 4, 4, 4)
    timestep = torch.tensor([500.0, CLEAN_SHORT_TERM] * 3).expand(2, 6)
    with torch.no_grad():
        expected = model(noisy, timestep, torch.ones(2, 11, dtype=torch.int64), context)
        model.clip_attention = FlexClipAttention
        found = model(noisy, timestep, torch.ones(2, 11, dtype=torch.int64), context)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_block_masks_are_made_once_for_each_length_of_clips():
    flex_attention._pairs.cache_clear()
    for num_frames in (9, 12, 9, 9, 12):
        FlexClipAttention(**layout_of(num_frames, num_frames - 6, Positions()))
    assert flex_attention._pairs.cache_info().misses == 2


@pytest.mark.slow
def test_clips_of_new_lengths_soon_compile_nothing_new(monkeypatch):
    """As the kernels are compiled on a GPU, but traced only; what differs between clips is in tensors."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    class Compiled(FlexClipAttention):
        def __init__(self, **layout):
            super().__init__(**layout)
            self._is_compiled = True

    monkeypatch.setattr(
        flex_attention, "_compiled", lambda kernel: torch.compile(kernel, dynamic=True, backend=backend)
    )
    torch.compiler.reset()
    counts = []
    for num_frames in (20, 90, 33, 64, 21):
        compare(layout_of(num_frames, num_frames - 16, Positions(), window=8, fine_tokens=16), Compiled)
        counts.append(len(graphs))
    assert counts[1:] == [counts[1]] * 4 and counts[1] <= 4  # one more of each where keys outgrow a block
    torch.compiler.reset()
