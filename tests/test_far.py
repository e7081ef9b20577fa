"""FAR: what tokens see, and that the cache changes what a frame costs, never what it shows."""

import copy
import dataclasses
import io
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from farworld.actions import Action, ActionVocabulary
from farworld.models import flow
from farworld.models.attention import QKV, ClipAttention, Positions, rope_table, rotate, visible
from farworld.models.autoencoder import AutoencoderConfig
from farworld.models.far import CLEAN_SHORT_TERM, FAR, TIMESTEP_SCALE, FARConfig, Frames, context_frames
from farworld.models.kv_cache import KVCache
from farworld.rollout import Rollout, denoise_clip
from farworld.world_model import WorldConfig, WorldModel

WINDOW = 3
VOCABULARY = ActionVocabulary(
    (Action(name="noop"), Action(name="left", keys=("left",)), Action(name="up", keys=("up",)))
)


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights that leave no part of a model idle; the usual start has zero gates and a zero head."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = 1.0 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
        offset = 1.0 if "norm" in name else 0.0
        parameter.data = offset + 0.3 * scale * torch.randn(parameter.shape, generator=generator)


def tiny_world(*, layout: str = "sliding", frame_action: str = "producing", **model) -> WorldModel:
    """A world with random weights; keywords go to its FARConfig."""
    sizes = {"num_actions": 3, "context_patch_size": 2, "short_term_frames": WINDOW, "num_layers": 3} | model
    config = WorldConfig(
        name="tiny",
        model=FARConfig(latent_channels=4, latent_height=4, latent_width=4, num_heads=2, head_size=16, **sizes),
        autoencoder=AutoencoderConfig(latent_channels=4, widths=(8, 8), encoder_blocks=(1, 0), decoder_blocks=(0, 1)),
        vocabulary=VOCABULARY if sizes["num_actions"] else ActionVocabulary((Action(name="wait"),)),
        frame_height=16, frame_width=16, frames_per_second=10.0, context_frames=12,
        layout=layout, frame_action=frame_action,
    )  # fmt: skip
    world = WorldModel(config)
    randomise(world.transformer)
    return world.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return tiny_world(copy_gate=True)


def clip(num_frames: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_frames)
    frames = torch.randint(0, 256, (batch, num_frames, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return frames, torch.randint(0, 3, (batch, num_frames), generator=generator)


def uncached_next(world: WorldModel, latents: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor, num_steps: int):
    """The next latents by whole-clip forwards: past frames clean, the last one denoised.

    In the sliding layout every past frame is fine, in the anchored one those of the window.
    """
    x, window = noise, world.config.model.window
    times = flow.euler_timesteps(num_steps)
    num_frames = latents.shape[1] + 1
    first_fine = max(0, num_frames - window) if world.config.layout == "anchored" else 0
    produced_by = torch.cat([torch.full_like(actions[:, :1], world.config.model.null_action), actions], dim=1)
    for now, then in zip(times, times[1:], strict=False):
        fine = torch.cat([latents, x[:, None]], dim=1)[:, first_fine:]
        timestep = torch.full(fine.shape[:2], CLEAN_SHORT_TERM)
        timestep[:, -1] = now * TIMESTEP_SCALE
        context = latents[:, : num_frames - window] if num_frames > window else None
        x = flow.euler_step(x, world.transformer(fine, timestep, produced_by, context)[:, -1], now, then)
    return x


KINDS = {
    "sliding": {},
    "sliding, with a copy gate": {"copy_gate": True},
    "sliding, FlexRoPE": {"positions": Positions.flex_rope(0.3)},
    "anchored": {"layout": "anchored"},
    "anchored, ALiBi": {"layout": "anchored", "positions": Positions.alibi()},
    "anchored, 1×1 coarse": {"layout": "anchored", "context_patch_size": 4},
    "anchored, 4×4 coarse": {"layout": "anchored", "context_patch_size": 1, "short_term_frames": 2},
    "sliding, a window of the frame itself": {"short_term_frames": 1, "copy_gate": True},
    "anchored, a window of the frame itself": {"short_term_frames": 1, "layout": "anchored"},
    "short": {"context_patch_size": None},
    "short, interpolated": {
        "context_patch_size": None,
        "positions": Positions.interpolated(trained_frames=4, num_frames=14),
    },
    "unconditional": {"num_actions": 0},
}


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 7, 11])  # around the 3-frame window, and well past it
@pytest.mark.parametrize("kind", KINDS)
def test_cached_rollout_equals_uncached_rollout(kind, num_frames):
    """Frames through ring caches are those of the model run on the whole clip each time."""
    world = tiny_world(**KINDS[kind])
    frames, actions = clip(num_frames + 3)
    if not world.config.model.num_actions:
        actions = torch.zeros_like(actions)
    rollout = Rollout(world, batch_size=2, num_steps=2, context_frames=32)
    rollout.prime(frames[:, :num_frames], actions[:, : num_frames - 1], seed=5)
    latents = world.encode(frames[:, :num_frames])
    for step in range(3):
        action = actions[:, num_frames - 1 + step]
        noise = rollout._noise(num_frames + step)
        expected = uncached_next(world, latents, actions[:, : num_frames + step], noise, num_steps=2)
        torch.testing.assert_close(rollout.step_latents(action), expected, atol=2e-5, rtol=1e-4)
        latents = torch.cat([latents, expected[:, None]], dim=1)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_an_open_copy_gate_holds_the_frame_exactly(world, num_steps):
    """Where the gate is open the frame before is reached from any noise; where it is shut the network draws."""
    still = copy.deepcopy(world)
    still.transformer.copy_head.weight.zero_()
    frames, actions = clip(6)
    for bias, held in ((30.0, True), (-30.0, False)):
        still.transformer.copy_head.bias.fill_(bias)
        rollout = Rollout(still, batch_size=2, num_steps=num_steps, context_frames=12)
        rollout.prime(frames, actions[:, :5])
        for _ in range(20):
            latents = rollout.step_latents(1)
        error = (latents - still.encode(frames[:, -1:])[:, 0]).abs().max()
        assert (error < 1e-4) == held


def test_only_a_clean_frame_is_copied():
    """A noised or missing frame before a frame is no source: the gate does not count there."""
    config = FARConfig(
        latent_channels=4, latent_height=4, latent_width=4, num_actions=3, num_layers=2, num_heads=1, head_size=16,
        context_patch_size=2, short_term_frames=WINDOW, copy_gate=True,
    )  # fmt: skip
    model = FAR(config)
    randomise(model)
    plain = FAR(dataclasses.replace(config, copy_gate=False))
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "copy_head" not in name})
    noisy, actions = torch.randn(1, 5, 4, 4, 4), torch.zeros(1, 5, dtype=torch.int64)
    timestep = torch.tensor([[500.0, 500.0, CLEAN_SHORT_TERM, 500.0, 500.0]])
    context = noisy[:, :3]
    with torch.no_grad():
        same = [
            torch.equal(gated, ungated)
            for gated, ungated in zip(
                model(noisy, timestep, actions, context).unbind(1),
                plain(noisy, timestep, actions, context).unbind(1),
                strict=True,
            )
        ]
    assert same == [True, True, True, False, True]


def test_the_anchored_and_the_sliding_layout_differ_once_the_window_has_moved():
    """Within the first window both are one thing; then frames of the window are seen from another start."""
    frames, actions = clip(8)
    world = tiny_world()
    results = []
    for layout in ("sliding", "anchored"):
        rollout = Rollout(world, batch_size=2, layout=layout)
        rollout.prime(frames[:, :1], actions[:, :0])
        results.append(torch.stack([rollout.step_latents(1) for _ in range(6)]))
    differs = (results[0] - results[1]).abs().amax(dim=(1, 2, 3, 4))
    assert differs[: WINDOW - 1].max() < 1e-5
    assert differs[WINDOW - 1 :].min() > 1e-4


def test_weights_conditioned_on_the_following_action_still_answer_to_the_key_at_once():
    """The official DMLab weights condition a frame on the action taken after it: the key goes to the newest frame.

    What is expected is a whole-clip pass in which the frame on the screen carries the key and the frame to come the
    null action. The rest of the past carries the actions taken after it.
    """
    world = tiny_world(frame_action="following", layout="anchored")
    frames, actions = clip(6)
    latents, null = world.encode(frames), torch.full((2, 1), world.config.model.null_action)
    rollout = Rollout(world, batch_size=2, num_steps=1)
    rollout.prime(frames[:, :5], actions[:, :4])
    noise = rollout._noise(5)
    timestep = torch.full((2, WINDOW), CLEAN_SHORT_TERM)
    timestep[:, -1] = TIMESTEP_SCALE
    fine = torch.cat([latents[:, 3:5], noise[:, None]], dim=1)
    conditions = torch.cat([actions[:, :5], null], dim=1)
    expected = noise - world.transformer(fine, timestep, conditions, latents[:, :3])[:, -1]
    first = rollout.step_latents(actions[:, 4])
    torch.testing.assert_close(first, expected, atol=2e-5, rtol=1e-4)
    rollout.prime(frames[:, :5], actions[:, :4])
    assert (rollout.step_latents((actions[:, 4] + 1) % 3) - first).abs().max() > 1e-4


def test_video_dit_sees_every_frame_from_every_frame():
    """The baseline has one timestep for the clip, no causality, and makes clips instead of frames."""
    world = tiny_world(causal=False, context_patch_size=None)
    noise, actions = torch.randn(2, 5, 4, 4, 4), torch.zeros(2, 5, dtype=torch.int64)
    changed = noise.clone()
    changed[:, 4] += 1
    first, second = (denoise_clip(world, actions, x, flow.euler_timesteps(2)) for x in (noise, changed))
    assert (first[:, 0] - second[:, 0]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="denoise_clip"):
        Rollout(world)


def test_guidance_scale_zero_heeds_no_action(world):
    frames, actions = clip(4, batch=1)
    results = []
    for action in (0, 2):
        rollout = Rollout(world, guidance_scale=0.0)
        rollout.prime(frames, actions[:, :3])
        results.append(rollout.step_latents(action))
    assert torch.equal(*results)


def test_the_rings_forget_what_is_older_than_the_context(world):
    """Two pasts that differ only before the context give the same next frame in a model of one layer's reach."""
    rollout = Rollout(world, num_steps=1, context_frames=WINDOW)
    frames, actions = clip(12, batch=1)
    other = frames.clone()
    other[:, 0] = 255 - other[:, 0]
    results = []
    for start in (frames, other):
        rollout.prime(start, actions[:, :11], seed=1)
        results.append(rollout.step_latents(1))
    # Each of 3 layers looks 2 frames further back: frame 0 is out of reach of frame 12 through any path.
    assert torch.equal(*results)


def test_grouped_clip_attention_equals_one_dense_mask():
    """Working in groups of frames only saves time."""
    generator = torch.Generator().manual_seed(0)
    fine_frame = torch.arange(5, 14).repeat_interleave(3)
    coarse_frame = torch.arange(0, 11).repeat_interleave(2)
    tokens = [QKV(*torch.randn(3, 2, 2, len(f), 8, generator=generator).unbind(0)) for f in (fine_frame, coarse_frame)]
    attend = ClipAttention(
        window=4, fine_frames=range(5, 14), coarse_frames=range(11), fine_tokens=3, coarse_tokens=2,
        positions=Positions(), num_heads=2, dtype=torch.float32,
    )  # fmt: skip
    fine_out, _ = attend(0, tokens[0], tokens[1])
    is_fine = torch.tensor([False] * len(coarse_frame) + [True] * len(fine_frame))
    key_frame = torch.cat([coarse_frame, fine_frame])
    mask = visible(fine_frame, key_frame, is_fine, window=4, first_fine=5)
    k, v = torch.cat([tokens[1].k, tokens[0].k], dim=2), torch.cat([tokens[1].v, tokens[0].v], dim=2)
    torch.testing.assert_close(fine_out, F.scaled_dot_product_attention(tokens[0].q, k, v, attn_mask=mask))


def test_every_past_frame_is_seen_either_fine_or_coarse():
    """No gap and no overlap between the two windows, in the sliding and in the anchored layout."""
    frames = torch.arange(10)
    key_frame = torch.cat([frames, frames])
    is_fine = torch.arange(20) >= 10
    for first_fine in (0, 6):
        mask = visible(frames[first_fine:], key_frame, is_fine, window=4, first_fine=first_fine)
        coarse, fine = mask[:, :10], mask[:, 10:]
        for row, query in enumerate(range(first_fine, 10)):
            seen = coarse[row].int() + fine[row].int()
            assert seen.tolist() == [1] * (query + 1) + [0] * (9 - query)
            assert fine[row].sum() == min(4, query - first_fine + 1)


def test_rope_depends_on_distance_only():
    """Attention scores far along a stream are those at its start: streams may run for ever."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 4, 16, generator=generator).unbind(0)
    scores = []
    for start in (0, 1_000_000):
        table = [rope_table([start + i], 2, 2, 1, 16) for i in (0, 3)]
        scores.append(rotate(q, table[1]) @ rotate(k, table[0]).transpose(-1, -2))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_a_frame_depends_on_its_own_action_and_not_on_later_ones(world):
    """The action that produced a frame conditions that frame; earlier frames never see it."""
    frames, actions = clip(6)
    latents = world.encode(frames)
    timestep = torch.full((2, 6), 500.0)
    changed = actions.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 3
    first, second = (world.transformer(latents, timestep, a, latents[:, :3]) for a in (actions, changed))
    assert torch.equal(first[:, :4], second[:, :4])
    assert (first[:, 4:] - second[:, 4:]).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-4


def test_same_seed_and_actions_give_the_same_frames_and_another_seed_others(world):
    frames, actions = clip(4, batch=1)
    runs = []
    for seed in (1, 1, 2):
        rollout = Rollout(world)
        rollout.prime(frames, actions[:, :3], seed=seed)
        runs.append(torch.stack([rollout.step_latents(a) for a in (0, 1, 2, 2, 1)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])


def test_snapshot_and_restore_continue_alike(world):
    frames, actions = clip(5, batch=1)
    rollout = Rollout(world)
    rollout.prime(frames, actions[:, :4], seed=3)
    rollout.step(1)
    snapshot = rollout.snapshot()
    first = [rollout.step(a) for a in (2, 0, 1, 1, 2, 0)]
    rollout.restore(snapshot)
    second = [rollout.step(a) for a in (2, 0, 1, 1, 2, 0)]
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


RESETS = {
    "sliding": ({"copy_gate": True}, {}),
    "anchored": ({"layout": "anchored", "copy_gate": True}, {}),
    "short": ({"context_patch_size": None}, {}),
    "sliding, FlexRoPE, guided": ({"positions": Positions.flex_rope(0.3)}, {"guidance_scale": 1.5}),
    "anchored, ALiBi, guided": ({"positions": Positions.alibi(), "layout": "anchored"}, {"guidance_scale": 1.5}),
    "sliding, noised context": ({"copy_gate": True}, {"context_noise": 0.2}),
    "anchored, following": ({"layout": "anchored", "frame_action": "following"}, {}),
    "sliding, following": ({"frame_action": "following", "copy_gate": True}, {}),
    "following, a window of the frame itself": ({"frame_action": "following", "short_term_frames": 1}, {}),
    "sliding, a label": ({"frame_action": "label"}, {}),
}


@pytest.mark.parametrize("kind", RESETS)
def test_streams_that_begin_anew_go_on_as_rollouts_of_their_own(kind):
    """Each keeps its own positions, noise and past, whatever the others do, to rounding; also through a snapshot.

    Contexts are shorter and longer than what the others have seen, around the window and past the end of the ring.
    """
    model, settings = RESETS[kind]
    world = tiny_world(**model)
    settings = {"num_steps": 2, "context_frames": 9, **settings}
    streams = Rollout(world, batch_size=3, **settings)
    alone = [Rollout(world, **settings) for _ in range(3)]
    frames, actions = clip(25, batch=3)
    streams.prime(frames[:, :3], actions[:, :2], seed=[5, 6, 7])
    for stream, single in enumerate(alone):
        single.prime(frames[stream : stream + 1, :3], actions[stream : stream + 1, :2], seed=5 + stream)
    resets = {1: (0, 20), 3: (1, 1), 4: (1, WINDOW), 9: (2, 12), 10: (0, 2), 16: (2, WINDOW + 1)}
    expected = []
    for step in range(30):
        if step in resets:
            stream, length = resets[step]
            context = frames[stream, :length], actions[stream, : length - 1]
            streams.reset_stream(stream, *context, seed=100 + step)
            alone[stream].prime(context[0][None], context[1][None], seed=100 + step)
        if step == 12:
            snapshot = streams.snapshot()
        action = torch.tensor([step % 3, (step + 1) % 3, 2])
        expected.append(torch.cat([single.step_latents(a) for single, a in zip(alone, action, strict=True)]))
        torch.testing.assert_close(streams.step_latents(action), expected[-1], atol=5e-6, rtol=1e-5)
    streams.restore(snapshot)
    for step in range(12, 16):
        latents = streams.step_latents(torch.tensor([step % 3, (step + 1) % 3, 2]))
        torch.testing.assert_close(latents, expected[step], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", ["sliding", "anchored"])
def test_streams_of_one_frame_still_take_their_label_when_another_begins_anew(layout):
    """The first frame has the label of the first step, which it was settled without."""
    world = tiny_world(layout=layout, frame_action="label")
    frames, actions = clip(4, batch=2)
    streams, single = Rollout(world, batch_size=2), Rollout(world)
    streams.prime(frames[:, :1], actions[:, :0], seed=[5, 6])
    single.prime(frames[:1, :1], actions[:1, :0], seed=5)
    streams.reset_stream(1, frames[1], actions[1, :3], seed=7)
    for _ in range(WINDOW + 2):
        expected = single.step_latents(2)
        torch.testing.assert_close(streams.step_latents(2)[:1], expected, atol=5e-6, rtol=1e-5)


def test_a_stream_that_went_wrong_begins_anew_and_leaves_the_others_alone(world):
    frames, actions = clip(5, batch=2)
    rollout = Rollout(world, batch_size=2)
    rollout.prime(frames, actions[:, :4])
    noise = torch.zeros(2, 4, 4, 4)
    noise[0] = torch.nan
    for _ in range(3):
        latents = rollout.step_latents(1, noise=noise)
    assert latents[0].isnan().all() and latents[1].isfinite().all()
    rollout.reset_stream(0, frames[0], actions[0, :4])
    assert all(rollout.step_latents(1).isfinite().all() for _ in range(15))


def test_the_only_stream_begins_anew_as_by_prime(world):
    frames, actions = clip(5, batch=1)
    rollout = Rollout(world)
    with pytest.raises(ValueError, match="prime"):
        rollout.reset_stream(0, frames[0], actions[0, :4])
    rollout.prime(frames, actions[:, :4], seed=3)
    expected = rollout.step_latents(1)
    rollout.reset_stream(0, frames[0], actions[0, :4], seed=3)
    assert torch.equal(rollout.step_latents(1), expected)
    with pytest.raises(ValueError, match=r"\[0, 0\]"):
        rollout.reset_stream(1, frames[0], actions[0, :4])
    for seed in (-1, [1, 2]):
        with pytest.raises(ValueError, match="seed of 0 or more"):
            rollout.prime(frames, actions[:, :4], seed=seed)


def test_guidance_mixes_conditional_and_null_predictions(world):
    """Guided velocity is null + scale · (conditional − null), so scale 1 is the plain one."""
    frames, actions = clip(4, batch=1)
    outputs = []
    for scale in (1.0, 1.0 + 1e-6, 3.0):
        rollout = Rollout(world, num_steps=1, guidance_scale=scale)
        rollout.prime(frames, actions[:, :3])
        outputs.append(rollout.step_latents(2))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3


def test_the_cache_has_one_size_for_ever(world):
    cache = KVCache(world.config.model, batch_size=1, context_frames=11)
    # 9 coarse frames of 4 tokens, 3 fine and 1 scratch frame of 16 tokens; keys and values, 3 layers, 32 wide, float32
    assert cache.num_bytes == 2 * 3 * (9 * 4 + 4 * 16) * 32 * 4


@pytest.mark.parametrize(
    ("action", "message"),
    [(3, r"\[0, 2\]"), (-1, r"\[0, 2\]"), (1.5, "integers"), (torch.tensor([0, 1]), "shape")],
)
def test_an_action_outside_the_vocabulary_is_an_error_that_names_the_range(world, action, message):
    frames, actions = clip(2, batch=1)
    rollout = Rollout(world)
    rollout.prime(frames, actions[:, :1])
    with pytest.raises(ValueError, match=message):
        rollout.step(action)


@pytest.mark.parametrize("layout", ["sliding", "anchored"])
@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
@pytest.mark.parametrize("num_threads", [1, 2])  # one copies all slots at once if most of them change
def test_snapshots_stay_what_they_were(world, layout, guidance_scale, num_threads, monkeypatch):
    """They share what they have in common with each other and with the rollout, and nobody may notice.

    One after every frame, twice around the ring, restored in any order, also after a new start, in another rollout
    and after a trip to a disk.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    frames, actions = clip(5, batch=1)
    rollout, other = (Rollout(world, layout=layout, guidance_scale=guidance_scale, context_frames=7) for _ in range(2))
    rollout.prime(frames, actions[:, :4], seed=3)
    snapshots, expected = [], []
    for step in range(16):
        snapshots.append(rollout.snapshot())
        expected.append(rollout.step_latents(step % 3))
    on_disk = io.BytesIO()
    torch.save(snapshots[3], on_disk)
    on_disk.seek(0)
    snapshots.append(torch.load(on_disk, weights_only=False))
    for index in (15, 0, 7, 7, 16, 2, "new", 5, 14, 1):
        if index == "new":
            rollout.prime(frames[:, :2], actions[:, :1], seed=4)
            rollout.step_latents(0)
            continue
        start = 3 if index == 16 else index
        for each in (rollout, other):
            each.restore(snapshots[index])
            for step in range(start, min(start + 4, 16)):
                assert torch.equal(each.step_latents(step % 3), expected[step])


@pytest.mark.parametrize(("layout", "fine_frames"), [("sliding", 40 + WINDOW), ("anchored", 0)])
def test_a_snapshot_of_every_frame_takes_the_memory_of_one_frame_each(world, layout, fine_frames):
    """What rewinding through minutes of play needs; and what nobody has any more is not kept.

    Where each frame encodes the window anew, what it was before is of no use to anyone.
    """
    frames, actions = clip(5, batch=1)
    rollout = Rollout(world, layout=layout)
    rollout.prime(frames, actions[:, :4])
    history = []
    for _ in range(40):
        rollout.step_latents(1)
        history.append(rollout.snapshot())
    pages = {id(page): page for snapshot in history for page in snapshot.pages if page is not None}
    coarse, fine = (
        [p for p in pages.values() if p.read().shape[-2] == tokens] for tokens in (world.config.model.coarse_tokens, 16)
    )
    assert 0 < len(coarse) < 40 + 12 and len(fine) <= fine_frames and bool(fine) == bool(fine_frames)
    page_bytes = sum(group[0].read().nbytes for group in (coarse, fine) if group)
    assert rollout.snapshot_bytes == page_bytes + history[-1].latents[-1].nbytes
    last = weakref.ref(history[-1].pages[0])
    del pages, coarse, fine
    history.clear()
    assert last() is None


def test_going_back_to_an_emptier_past_forgets_a_stream_that_went_wrong(world):
    frames, actions = clip(5, batch=1)
    rollout = Rollout(world)
    rollout.prime(frames, actions[:, :4])
    start = rollout.snapshot()
    expected = rollout.step_latents(0)
    for _ in range(4):
        rollout.step_latents(0, noise=torch.full((1, 4, 4, 4), torch.nan))
    rollout.restore(start)
    assert torch.equal(rollout.step_latents(0), expected)


class DenseWithSinks:
    """Attention of each frame by itself to all that it is to see, without a cache.

    Of `length` coarse frames `sinks` are a stream's first ones, which stand where the oldest of as many frames would
    stand without them.
    """

    def __init__(self, config: FARConfig, num_frames: int, sinks: int, length: int) -> None:
        self.config, self.num_frames, self.sinks, self.length = config, num_frames, sinks, length

    def attend(self, frame: int, q, newest: int, last: int, coarse, fine=None):
        """The queries of a frame, which sees coarse frames up to `last`; `newest` is the newest that is encoded."""
        config, beyond = self.config, max(0, newest - self.length + 1)
        k, v, key_frames = [], [], []
        for other in range(last + 1):
            here = slice(other * config.coarse_tokens, (other + 1) * config.coarse_tokens)
            shift = beyond if other < self.sinks else 0
            if other < self.sinks or other >= beyond + self.sinks:
                turn = rope_table([shift], 1, 1, 1, config.head_size, frame_scale=config.positions.frame_scale)
                k.append(rotate(coarse.k[:, :, here], turn))
                v.append(coarse.v[:, :, here])
                key_frames += [other + shift] * config.coarse_tokens
        if fine is not None:
            here = slice(max(0, frame - WINDOW + 1) * config.fine_tokens, (frame + 1) * config.fine_tokens)
            k.append(fine.k[:, :, here])
            v.append(fine.v[:, :, here])
            key_frames += torch.arange(frame + 1).repeat_interleave(config.fine_tokens)[here].tolist()
        decay = config.positions.head_slopes(config.num_heads)[:, None, None] * (torch.tensor(key_frames) - frame)
        return F.scaled_dot_product_attention(q, torch.cat(k, 2), torch.cat(v, 2), attn_mask=decay[None])

    def __call__(self, layer, fine, coarse):
        """See `farworld.models.attention.Attend`."""
        config = self.config
        coarse_out = [
            self.attend(frame, q, frame, frame, coarse)
            for frame, q in enumerate(coarse.q.split(config.coarse_tokens, dim=2))
        ]
        fine_out = []
        for frame, q in enumerate(fine.q.split(config.fine_tokens, dim=2)):
            newest = min(frame + 1, self.num_frames - 1) - WINDOW  # a frame is encoded along with the next one
            fine_out.append(self.attend(frame, q, newest, frame - WINDOW, coarse, fine))
        return torch.cat(fine_out, dim=2), torch.cat(coarse_out, dim=2)


SINK_POSITIONS = {
    "RoPE": Positions(),
    "FlexRoPE": Positions.flex_rope(0.3),
    "ALiBi": Positions.alibi(),
    "interpolated": Positions.interpolated(trained_frames=4, num_frames=14),
}


@pytest.mark.parametrize("positions", SINK_POSITIONS)
@pytest.mark.parametrize("num_frames", [8, 9, 10, 14, 23])  # the ring of 6 coarse frames is full at 9
def test_sinks_are_seen_from_where_the_oldest_frames_would_be(positions, num_frames):
    """Everything else equals the direct computation over the whole stream, also after a restore."""
    world = tiny_world(positions=SINK_POSITIONS[positions])
    config = world.config.model
    frames, actions = clip(num_frames)
    rollout = Rollout(world, batch_size=2, num_steps=1, context_frames=6 + WINDOW - 1, sink_frames=2)
    rollout.prime(frames, actions[:, :-1])
    latents, noise = world.encode(frames), rollout._noise(num_frames)
    produced_by = torch.cat([torch.full_like(actions[:, :1], config.null_action), actions], dim=1)
    timestep = torch.full((2, num_frames + 1), CLEAN_SHORT_TERM)
    timestep[:, -1] = TIMESTEP_SCALE
    fine = Frames(torch.cat([latents, noise[:, None]], dim=1), timestep, produced_by, range(num_frames + 1))
    coarse = num_frames - WINDOW + 1
    velocity = world.transformer.run(
        fine, context_frames(latents[:, :coarse], produced_by[:, :coarse], range(coarse)),
        DenseWithSinks(config, num_frames + 1, sinks=2, length=6),
    )  # fmt: skip
    expected = noise - velocity[:, -1]
    start = rollout.snapshot()
    first = rollout.step_latents(actions[:, -1])
    torch.testing.assert_close(first, expected, atol=2e-5, rtol=1e-4)
    later = [rollout.step_latents(1) for _ in range(9)]
    rollout.restore(start)
    assert torch.equal(rollout.step_latents(actions[:, -1]), first)
    assert all(torch.equal(rollout.step_latents(1), latents) for latents in later)


def test_sinks_change_nothing_until_the_ring_is_full_and_are_remembered_then():
    """One layer, so that nothing older lives on in the keys of what is still there."""
    world = tiny_world(num_layers=1)
    frames, actions = clip(4, batch=1)
    other = frames.clone()
    other[:, 0] = 255 - other[:, 0]
    generated = []
    for start, sinks in ((frames, 0), (frames, 2), (other, 2), (other, 0)):
        rollout = Rollout(world, num_steps=1, context_frames=8, sink_frames=sinks)
        rollout.prime(start, actions[:, :3])
        generated.append([rollout.step_latents(1, noise=torch.zeros(1, 4, 4, 4)) for _ in range(20)])
    plain, kept, changed, _ = generated
    full = 8 - 4  # frame 8 still sees frame 0, frame 9 only as a sink
    assert all(torch.equal(*pair) for pair in zip(plain[: full + 1], kept[: full + 1], strict=True))
    assert not torch.equal(plain[full + 1], kept[full + 1])
    plain, kept = (Rollout(world, num_steps=1, context_frames=8, sink_frames=sinks) for sinks in (0, 2))
    for rollout, seen in ((plain, False), (kept, True)):
        results = []
        for start in (frames, other):
            past = torch.cat([start, *[frames] * 4], dim=1)
            rollout.prime(past, actions[:, [0]].expand(1, 19))
            results.append(rollout.step_latents(1, noise=torch.zeros(1, 4, 4, 4)))
        assert ((results[0] - results[1]).abs().max() > 1e-5) == seen


def test_sinks_that_do_not_fit_are_refused(world):
    short = tiny_world(context_patch_size=None)
    for where, settings in ((world, {"sink_frames": 10}), (world, {"sink_frames": -1}), (short, {"sink_frames": 1})):
        with pytest.raises(ValueError, match=r"sink_frames must be in \[0, "):
            Rollout(where, **settings)
    with pytest.raises(ValueError, match="sliding"):
        Rollout(world, layout="anchored", sink_frames=1)
    with_sinks = WorldModel(dataclasses.replace(world.config, sink_frames=2))
    assert Rollout(with_sinks).sink_frames == 2 and Rollout(with_sinks, layout="anchored").sink_frames == 0
    frames, actions = clip(3)
    rollout = Rollout(world, batch_size=2, sink_frames=1)
    rollout.prime(frames, actions[:, :2])
    with pytest.raises(ValueError, match="sink_frames=0"):
        rollout.reset_stream(0, frames[0], actions[0, :2])


@torch.inference_mode()
def primed_at(rollout: Rollout, first: int, latents: torch.Tensor, actions: torch.Tensor) -> Rollout:
    """A stream whose first frame has this number."""
    rollout.prime_latents(latents[:, :0], actions[:, :0])
    rollout.frame_index, rollout._fine_end, rollout._coarse_end = first - 1, first, first
    for frame, action in zip(latents.unbind(1), actions.unbind(1), strict=True):
        if rollout._latents:
            rollout._run(None, 0, first=True)
        rollout._remember(frame, action)
    return rollout


@pytest.mark.parametrize("positions", SINK_POSITIONS)
@pytest.mark.parametrize("context_patch_size", [2, None])
def test_frame_a_million_is_what_frame_four_hundred_is(positions, context_patch_size):
    """Angles are made in float64: nothing that depends on how long a stream has run gets lost."""
    world = tiny_world(
        positions=SINK_POSITIONS[positions], context_patch_size=context_patch_size, short_term_frames=4, copy_gate=True
    )
    frames, actions = clip(16)
    results = []
    for first in (400, 1_000_000):
        rollout = primed_at(
            Rollout(world, batch_size=2, num_steps=2, context_frames=12), first, world.encode(frames), actions
        )
        noise = torch.randn(12, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        results.append(torch.stack([rollout.step_latents(1, noise=x) for x in noise]))
    torch.testing.assert_close(*results, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "other",
    [{"layout": "anchored"}, {"context_frames": 9}, {"batch_size": 2}, {"guidance_scale": 1.5}, {"num_steps": 3},
     {"context_noise": 0.1}, {"sink_frames": 1}],
)  # fmt: skip
def test_a_snapshot_of_a_rollout_with_other_settings_is_refused(world, other):
    frames, actions = clip(5, batch=1)
    rollout = Rollout(world)
    rollout.prime(frames, actions[:, :4])
    name = "timesteps" if "num_steps" in other else next(iter(other))
    with pytest.raises(ValueError, match=f"made alike: expected {name} "):
        Rollout(world, **other).restore(rollout.snapshot())


def test_a_snapshot_from_before_the_first_frame_still_wants_a_context(world):
    rollout = Rollout(world)
    rollout.restore(rollout.snapshot())
    with pytest.raises(ValueError, match="prime"):
        rollout.step(0)


def test_seeds_of_streams_may_be_an_array(world):
    frames, actions = clip(3)
    latents = []
    for seed in ([5, 6], np.array([5, 6])):
        rollout = Rollout(world, batch_size=2)
        rollout.prime(frames, actions[:, :2], seed=seed)
        latents.append(rollout.step_latents(1))
    assert torch.equal(*latents)


def test_priming_forgets_a_stream_that_went_wrong(world):
    """Masked keys still count zero times, which a NaN survives."""
    frames, actions = clip(5, batch=1)
    rollout = Rollout(world)
    rollout.prime_latents(torch.full((1, 5, 4, 4, 4), torch.nan), torch.zeros(1, 5, dtype=torch.int64))
    rollout.step_latents(0)
    rollout.prime(frames, actions[:, :4])
    assert rollout.step_latents(0).isfinite().all()


def test_misuse_is_said_in_one_line(world):
    for timesteps in ([], [1.0], [0.5, 0.0], [1.0, 1.0, 0.0]):
        with pytest.raises(ValueError, match="fall from 1 to 0"):
            Rollout(world, timesteps=timesteps)
    for wrong in ({"patch_size": 0}, {"context_patch_size": 0}, {"num_layers": 0}, {"num_actions": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(world.config.model, **wrong)
    with pytest.raises(ValueError, match="prime"):
        Rollout(world).step(0)
    with pytest.raises(ValueError, match="F at least 1"):
        Rollout(world).prime(torch.zeros(1, 0, 16, 16, 3, dtype=torch.uint8), torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="actions that produced"):
        Rollout(world).prime_latents(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="short-term window of 3"):
        Rollout(world, context_frames=2)
    with pytest.raises(ValueError, match="at least 1"):
        Rollout(world, num_steps=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Rollout(world, batch_size=0)
    for scale in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="guidance_scale must not be negative"):
            Rollout(world, guidance_scale=scale)
    with pytest.raises(ValueError, match="uint8"):
        Rollout(world).prime(torch.zeros(1, 2, 8, 8, 3), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="must divide"):
        FARConfig(
            latent_channels=4, latent_height=6, latent_width=6, num_actions=1, num_layers=1, num_heads=1,
            context_patch_size=4,
        )  # fmt: skip


def test_a_fresh_model_predicts_zero_velocity():
    """The zero-initialised head makes the first loss that of predicting nothing."""
    config = FARConfig(latent_channels=4, latent_height=4, latent_width=4, num_actions=2, num_layers=1, num_heads=1)
    model = FAR(config)
    velocity = model(torch.randn(1, 2, 4, 4, 4), torch.full((1, 2), 300.0), torch.zeros(1, 2, dtype=torch.int64), None)
    assert velocity.abs().max() == 0


def test_the_context_holds_as_many_frames_as_it_says(world):
    """With a context of 6 frames the next frame depends on the 6th frame back and not on the 7th.

    One layer, so that nothing older lives on in the keys of what is still there; the ring has wrapped by then.
    """
    config = dataclasses.replace(world.config, model=dataclasses.replace(world.config.model, num_layers=1))
    shallow = WorldModel(config)
    randomise(shallow.transformer)
    shallow.autoencoder.load_state_dict(world.autoencoder.state_dict())
    shallow.eval()
    frames, actions = clip(15, batch=1)
    results = []
    for changed in (None, 15 - 6, 15 - 7):
        other = frames.clone()
        if changed is not None:
            other[:, changed] = 255 - other[:, changed]
        rollout = Rollout(shallow, num_steps=1, context_frames=6)
        rollout.prime(other, actions[:, :14], seed=1)
        results.append(rollout.step_latents(1))
    assert (results[0] - results[1]).abs().max() > 1e-5
    assert torch.equal(results[0], results[2])
