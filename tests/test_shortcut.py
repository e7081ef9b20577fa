"""Few-step training, noised context, and runs that begin with given weights."""

import copy
import dataclasses
import json

import pytest
import torch
from test_far import KINDS, clip, randomise, tiny_world
from test_train import ALONE, SMALL, bars, draws, train  # noqa: F401  bars is a fixture

from farworld.checkpoint import config_from_json, config_to_json, load_world
from farworld.models import flow, modulation_table
from farworld.models.far import CLEAN_LONG_TERM, CLEAN_SHORT_TERM, FAR, TIMESTEP_SCALE, FARConfig, context_mark
from farworld.rollout import CONTEXT_NOISE_KEY, Rollout
from farworld.train import world as world_stage
from farworld.train.config import PRESETS, override, preset
from farworld.train.pipeline import open_run
from farworld.train.world import ClipInputs, flow_matching_loss, noise_context, two_half_steps
from farworld.world_model import WorldModel

FINEST = 8
FEW = {"shortcut_steps": FINEST, "copy_gate": True}


def model_of(seed: int = 0, **changes) -> FAR:
    config = FARConfig(
        **{
            "latent_channels": 4,
            "latent_height": 4,
            "latent_width": 4,
            "num_actions": 3,
            "num_layers": 2,
            "num_heads": 1,
            "head_size": 16,
            "context_patch_size": 2,
            "short_term_frames": 3,
            **changes,
        }  # fmt: skip
    )
    model = FAR(config)
    randomise(model, seed)
    return model


# Steps and their sizes


@pytest.mark.parametrize("num_steps", range(1, 20))
def test_every_step_of_a_path_has_a_trained_size_and_starts_at_a_multiple_of_it(num_steps):
    times = flow.shortcut_timesteps(num_steps, FINEST)
    steps = list(zip(times, times[1:], strict=False))
    assert len(steps) == num_steps and (times[0], times[-1]) == (1.0, pytest.approx(0.0, abs=1e-12))
    for now, then in steps:
        size = flow.shortcut_size(now - then, FINEST)
        assert size in (1, 1 / 2, 1 / 4, 1 / 8)
        if num_steps <= FINEST:
            assert now - then == size and now % size == 0


def test_steps_are_even_where_their_number_is_a_power_of_two_or_beyond_the_finest():
    for num_steps in (1, 2, 4, 8, 9, 13):
        assert flow.shortcut_timesteps(num_steps, FINEST) == flow.euler_timesteps(num_steps)
    assert flow.shortcut_timesteps(3, FINEST) == [1.0, 0.5, 0.25, 0.0]
    assert flow.shortcut_size(1 / 3, FINEST) == 1 / 4 and flow.shortcut_size(0.001, FINEST) == 1 / FINEST


def test_steps_to_learn_are_of_all_sizes_above_the_finest_and_start_at_all_multiples():
    sizes, times = flow.shortcuts_of_draws(*torch.rand(2, 400, 5, generator=torch.Generator().manual_seed(0)), FINEST)
    pairs = set(zip(sizes.flatten().tolist(), times.flatten().tolist(), strict=True))
    assert pairs == {(1 / n, k / n) for n in (1, 2, 4) for k in range(1, n + 1)}
    assert torch.bincount((-torch.log2(sizes)).long().flatten()).min() > 2000 / 3 * 0.85


# The model


def test_a_trained_model_is_told_step_sizes_and_goes_on_as_it_was():
    """The new embedding starts at zero, whatever size is asked for."""
    plain, told = model_of(), FAR(model_of(shortcut_steps=FINEST).config)
    missing = told.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["step_embedding.weight"]
    x, actions, t = torch.randn(2, 3, 4, 4, 4), torch.ones(2, 3, dtype=torch.int64), torch.full((2, 3), 500.0)
    for size in (None, torch.full((2, 3), 0.5)):
        assert torch.equal(told(x, t, actions, None, step_size=size), plain(x, t, actions, None))


def test_a_step_size_concerns_the_frame_that_takes_the_step():
    """Context takes none, later frames see what came of it, and no size is the finest one."""
    model = model_of(shortcut_steps=FINEST)
    x, actions = torch.randn(1, 3, 4, 4, 4), torch.ones(1, 3, dtype=torch.int64)
    t = torch.tensor([[500.0, CLEAN_SHORT_TERM, 500.0]])
    sizes = torch.full((1, 3), 1 / FINEST)
    base = model(x, t, actions, None, step_size=sizes)
    assert torch.equal(base, model(x, t, actions, None))
    for frame, changes in ((0, [True, True, True]), (1, [False] * 3), (2, [False, False, True])):
        other = sizes.clone()
        other[0, frame] = 1.0
        differs = (model(x, t, actions, None, step_size=other) - base).abs().amax(dim=(0, 2, 3, 4)) > 1e-5
        assert differs.tolist() == changes


# The rollout


def uncached(world: WorldModel, latents, actions, noise, rollout: Rollout, layout: str):
    """The next latents by whole-clip passes, with the rollout's steps and context noise."""
    config, num_frames, level = world.config.model, latents.shape[1] + 1, rollout.context_noise
    first_fine = max(0, num_frames - config.window) if layout == "anchored" else 0
    produced_by = torch.cat([torch.full_like(actions[:, :1], config.null_action), actions], dim=1)
    shown, x = latents, noise
    if level:
        added = torch.stack([rollout._noise(i, CONTEXT_NOISE_KEY) for i in range(num_frames - 1)], dim=1)
        shown = flow.add_noise(latents, added, torch.full(latents.shape[:2], level))
    long_term = num_frames - config.window if num_frames > config.window else 0
    for now, then in zip(rollout.timesteps, rollout.timesteps[1:], strict=False):
        fine = torch.cat([shown, x[:, None]], dim=1)[:, first_fine:]
        timestep = torch.full(fine.shape[:2], context_mark(CLEAN_SHORT_TERM, level))
        timestep[:, -1] = now * TIMESTEP_SCALE
        before = torch.cat([latents[:, :1], latents], dim=1)[:, first_fine:]
        velocity = world.transformer(
            fine, timestep, produced_by, shown[:, :long_term] if long_term else None,
            step_size=torch.full(fine.shape[:2], flow.shortcut_size(now - then, FINEST)),
            context_timestep=torch.full((2, long_term), context_mark(CLEAN_LONG_TERM, level)), before=before,
        )  # fmt: skip
        x = flow.euler_step(x, velocity[:, -1], now, then)
    return x


@pytest.mark.parametrize("kind", ["sliding, with a copy gate", "anchored", "short"])
@pytest.mark.parametrize("context_noise", [0.0, 0.2])
@pytest.mark.parametrize("num_steps", [1, 3, 4, 9])
def test_a_cached_rollout_takes_the_matching_steps_and_sees_the_noised_context(kind, num_steps, context_noise):
    kwargs = KINDS[kind]
    world = tiny_world(shortcut_steps=FINEST, **kwargs)
    frames, actions = clip(8)
    rollout = Rollout(world, batch_size=2, num_steps=num_steps, context_frames=32, context_noise=context_noise)
    rollout.prime(frames[:, :5], actions[:, :4], seed=5)
    latents = world.encode(frames[:, :5])
    for step in range(3):
        noise = rollout._noise(5 + step)
        expected = uncached(world, latents, actions[:, : 5 + step], noise, rollout, kwargs.get("layout", "sliding"))
        torch.testing.assert_close(rollout.step_latents(actions[:, 4 + step]), expected, atol=3e-5, rtol=1e-4)
        latents = torch.cat([latents, expected[:, None]], dim=1)


def test_a_table_knows_step_sizes_and_noised_context(monkeypatch):
    world = tiny_world(**FEW)
    frames, actions = clip(7)
    results = []
    for most_rows in (512, 0):
        monkeypatch.setattr(modulation_table, "MOST_ROWS", most_rows)
        rollout = Rollout(world, batch_size=2, num_steps=3, context_noise=0.1)
        assert (rollout._modulate is None) == (most_rows == 0)
        rollout.prime(frames, actions[:, :6])
        results.append(torch.stack([rollout.step_latents(1) for _ in range(3)]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_noised_context_is_the_same_one_after_a_restore_and_another_one_by_another_seed():
    world = tiny_world(**FEW)
    frames, actions = clip(6, batch=1)
    rollout = Rollout(world, context_noise=0.3)
    results = []
    for seed in (1, 1, 2):
        rollout.prime(frames, actions[:, :5], seed=seed)
        start = rollout.snapshot()
        first = torch.stack([rollout.step_latents(2, noise=torch.zeros(1, 4, 4, 4)) for _ in range(6)])
        rollout.restore(start)
        again = torch.stack([rollout.step_latents(2, noise=torch.zeros(1, 4, 4, 4)) for _ in range(6)])
        assert torch.equal(first, again)
        results.append(first)
    assert torch.equal(results[0], results[1]) and (results[0] - results[2]).abs().max() > 1e-4


@pytest.mark.parametrize("num_steps", [1, 3, FINEST])
def test_an_open_copy_gate_holds_the_frame_without_its_noise(num_steps):
    """What is taken over is the frame as it was: context noise must not pile up from frame to frame."""
    world = copy.deepcopy(tiny_world(**FEW))
    world.transformer.copy_head.weight.zero_()
    world.transformer.copy_head.bias.fill_(30.0)
    frames, actions = clip(6)
    rollout = Rollout(world, batch_size=2, num_steps=num_steps, context_frames=12, context_noise=0.3)
    rollout.prime(frames, actions[:, :5])
    for _ in range(20):
        latents = rollout.step_latents(1)
    assert (latents - world.encode(frames[:, -1:])[:, 0]).abs().max() < 1e-4


def test_a_world_carries_its_step_sizes_and_its_context_noise():
    config = dataclasses.replace(tiny_world(**FEW).config, context_noise=0.1, num_steps=4)
    stored = json.loads(json.dumps(config_to_json(config)))
    assert config_from_json(stored) == config
    world = WorldModel(config)
    assert Rollout(world).context_noise == 0.1 and Rollout(world).settings.step_sizes == [0.25] * 4
    for name in ("shortcut_steps",):  # an older world says nothing of them
        del stored["model"][name]
    del stored["context_noise"]
    older = config_from_json(stored)
    assert older.model.shortcut_steps is None and older.context_noise == 0.0


# The losses


class Field(torch.nn.Module):
    """Stands in for a model: the velocity is twice the latents, and calls are kept."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, noisy, timestep, action, context, *, step_size, context_timestep, before):
        """Twice the latents."""
        self.calls.append((noisy, timestep, step_size))
        return 2 * noisy


def test_a_large_step_learns_the_mean_velocity_of_two_half_steps():
    x = torch.randn(1, 3, 4, 2, 2)
    is_context = torch.tensor([[False, True, False]])
    t, size = torch.tensor([[1.0, 1.0, 0.5]]), torch.tensor([[1.0, 1.0, 0.25]])
    field = Field()
    target = two_half_steps(field, ClipInputs(x, t, is_context, torch.zeros(1, 3, dtype=torch.int64), None, size))
    (first, first_t, first_size), (second, second_t, second_size) = field.calls
    assert torch.equal(first, x) and first_t.tolist() == [[1000.0, CLEAN_SHORT_TERM, 500.0]]
    assert first_size.tolist() == second_size.tolist() == [[0.5, 0.5, 0.125]]
    torch.testing.assert_close(second, torch.stack([x[:, 0] * 0, x[:, 1], x[:, 2] * 0.75], dim=1))
    assert second_t.tolist() == [[500.0, CLEAN_SHORT_TERM, 375.0]]
    # One step of the whole size along the target is where the two half steps led.
    torch.testing.assert_close(x[:, 2] - 0.25 * target[:, 2], second[:, 2] - 0.125 * 2 * second[:, 2])


def batch(length: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, length, 8, 4, 4, generator=generator), torch.randint(0, 3, (8, length), generator=generator)


def loss_of(model: FAR, settings: list[str], **kwargs) -> torch.Tensor:
    config = override(PRESETS["maze-xs"], [*SMALL, *settings])
    return flow_matching_loss(model, model.config, *batch(), config, draws(8), **kwargs)


def test_without_bootstrapped_clips_the_loss_is_that_of_flow_matching():
    """But for the copy gate, which has to reach the frame before in the finest steps as well."""
    config = override(PRESETS["maze-xs"], [*SMALL, "shortcut_steps=8", "copy_gate=False"])
    plain, told = FAR(override(config, ["shortcut_steps=None"]).far(3)), FAR(config.far(3))
    randomise(plain)
    told.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(loss_of(plain, []), loss_of(told, ["bootstrap_ratio=0.0"]))
    assert not torch.equal(loss_of(plain, []), loss_of(told, ["bootstrap_ratio=0.5"]))


def test_each_clip_is_bootstrapped_by_its_own_draw(monkeypatch):
    """So that the share holds for any batch size, and for any division of a batch among processes."""
    counts = []
    monkeypatch.setattr(
        world_stage, "two_half_steps", lambda teacher, inputs: counts.append(len(inputs.noisy)) or inputs.noisy
    )
    config = override(PRESETS["maze-xs"], [*SMALL, "shortcut_steps=8", "bootstrap_ratio=0.25"])
    model, (clips, actions) = FAR(config.far(3)), batch(6)
    for seed in range(200):
        flow_matching_loss(model, model.config, clips[:2], actions[:2], config, draws(2, first_seed=2 * seed))
    assert set(counts) == {1, 2} and 70 < sum(counts) < 130  # a quarter of the clips
    flow_matching_loss(model, model.config, clips, actions, config, draws(8))
    together = counts.pop()
    counts.clear()
    for item in range(8):
        flow_matching_loss(model, model.config, clips[:1], actions[:1], config, draws(1, first_seed=item))
    assert sum(counts) == together


def test_a_teacher_shows_the_steps_and_learns_nothing():
    model, teacher = (FAR(override(PRESETS["maze-xs"], [*SMALL, "shortcut_steps=8"]).far(3)) for _ in range(2))
    randomise(model)
    randomise(teacher, 1)
    loss = loss_of(model, ["bootstrap_ratio=1.0"], teacher=teacher)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert model.step_embedding.weight.grad[:3].abs().amax(dim=1).min() > 0
    assert model.step_embedding.weight.grad[3].abs().max() == 0  # nobody is asked for the finest size
    assert not torch.equal(loss, loss_of(model, ["bootstrap_ratio=1.0"]))


def test_under_autocast_the_half_steps_leave_every_weight_its_gradient():
    model = FAR(override(PRESETS["maze-xs"], [*SMALL, "shortcut_steps=8"]).far(3))
    randomise(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, ["bootstrap_ratio=0.5"], own_context_ratio=0.5)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert set(without) <= {"blocks.1.coarse_attention.norm_q.weight"}  # see test_train


def test_context_tells_its_noise_and_is_copied_without_it():
    clips, actions = batch(10)
    fine, is_context = clips[:, 4:], torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    time = torch.full((8, 6), 0.7)
    inputs = noise_context(ClipInputs(fine, time, is_context, actions, clips[:, :7]), 0.4, draws(8))
    level = inputs.noise_level
    assert level.shape == (8, 13) and 0 <= level.min() and 0.35 < level.max() <= 0.4
    same = (inputs.noisy == fine).flatten(2).all(dim=2)
    assert torch.equal(same, ~is_context)
    added = (inputs.noisy - (1 - level[:, 7:, None, None, None]) * fine)[is_context] / level[:, 7:][is_context][
        :, None, None, None
    ]
    assert 0.95 < added.std() < 1.05 and added.mean().abs() < 0.05
    assert torch.equal(inputs.before, clips[:, 3:9])
    seen = {}

    class Listener(torch.nn.Module):
        def forward(self, noisy, timestep, action, context, **kwargs):
            seen.update(kwargs, timestep=timestep)
            return noisy

    inputs.velocity(Listener())
    torch.testing.assert_close(seen["timestep"][is_context], -1 - 1000 * level[:, 7:][is_context])
    assert (seen["timestep"][~is_context] == 700).all()
    torch.testing.assert_close(seen["context_timestep"], -2 - 1000 * level[:, :7])


def test_one_step_lands_on_one_of_two_futures_where_plain_euler_lands_between():
    """What few steps are for: where the past leaves two futures open, a mean of both is neither.

    The next frame is all +1 or all −1, at random. A plain model's one step predicts the mean, zero.
    """
    torch.manual_seed(0)
    sizes = {"latent_channels": 1, "latent_height": 2, "latent_width": 2, "num_heads": 2, "patch_size": 2,
             "context_patch_size": None, "num_actions": 1}  # fmt: skip
    settings = [*SMALL, "clean_context_ratio=0.0", "fine_frames=2", "bootstrap_ratio=0.5", "shortcut_steps=8"]
    config = override(PRESETS["maze-xs"], settings)
    ends = {}
    for shortcut_steps in (None, 8):
        torch.manual_seed(0)
        model = FAR(dataclasses.replace(model_of(**sizes).config, shortcut_steps=shortcut_steps))
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)
        num_updates = 350
        for step in range(num_updates):
            optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, 2 * (1 - step / num_updates))
            signs = torch.randint(0, 2, (128, 1, 1, 1, 1), generator=generator) * 2.0 - 1
            actions = torch.zeros(128, 1, dtype=torch.int64)
            loss = flow_matching_loss(
                model, model.config, signs.expand(128, 1, 1, 2, 2), actions, config, draws(128, first_seed=128 * step)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        noise = torch.randn(256, 1, 1, 2, 2, generator=generator)
        whole = torch.ones(256, 1)
        with torch.no_grad():
            velocity = model(noise, whole * 1000, torch.ones(256, 1, dtype=torch.int64), None, step_size=whole)
        ends[shortcut_steps] = (noise - velocity).mean(dim=(1, 2, 3, 4))
    assert ends[None].abs().mean() < 0.35
    assert ends[8].abs().mean() > 0.7
    assert 0.3 < (ends[8] > 0).float().mean() < 0.7  # both futures, half and half


# Settings, and runs that begin with given weights


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["shortcut_steps=6"], "power of two"),
        (["shortcut_steps=1"], "power of two"),
        (["shortcut_steps=8", "causal=False", "context_patch_size=None", "copy_gate=False"], "causal=True"),
        (["bootstrap_ratio=1.5"], "bootstrap_ratio"),
        (["context_noise=0.1"], "play asks for what was learnt"),
        (["context_noise_max=1.0"], "context_noise_max < 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        preset("maze-xs", settings)


def test_a_rollout_refuses_context_that_is_all_noise():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Rollout(tiny_world(), context_noise=1.0)


def test_a_run_begins_with_the_weights_of_another_and_learns_few_steps(bars, tmp_path):  # noqa: F811
    """The autoencoder is taken over, the transformer goes on, the exported world says what it was taught."""
    first, _ = train(tmp_path / "first", bars, "autoencoder_steps=3", "world_steps=3")
    from farworld.dataset import Dataset

    data = Dataset(bars)
    settings = ["shortcut_steps=4", "world_steps=2", "context_noise_max=0.2", "context_noise=0.1", "num_steps=2"]
    run = open_run(
        tmp_path / "second", None, settings, resume=False, stage="all", data=data, ranks=ALONE, init=str(first.path)
    )
    given = world_stage.initial_weights(run)
    began = load_world(first.path).model.transformer.state_dict()
    assert all(torch.equal(given[name], tensor) for name, tensor in began.items())
    assert set(given) - set(began) == {"step_embedding.weight"} and not given["step_embedding.weight"].any()
    run.close()
    _, result = train(run.path, bars, resume=True)
    assert not run.checkpoint_files("autoencoder") and result["world_steps"] == 2
    world = load_world(run.path)
    assert (world.config.model.shortcut_steps, world.config.context_noise, world.config.num_steps) == (4, 0.1, 2)
    pixels = load_world(first.path).model.autoencoder.state_dict()
    assert all(torch.equal(pixels[name], tensor) for name, tensor in world.model.autoencoder.state_dict().items())
    moved = world.model.transformer.state_dict()["step_embedding.weight"]
    assert moved.abs().max() > 0

    with pytest.raises(ValueError, match="--init begins one"):
        open_run(run.path, None, [], resume=True, stage="all", data=data, ranks=ALONE, init=str(first.path))
    with pytest.raises(ValueError, match=r"num_layers=2, this run 3.*leave --preset out"):
        open_run(
            tmp_path / "third", "maze-xs", [*SMALL, "num_layers=3"], resume=False, stage="all", data=data,
            ranks=ALONE, init=str(first.path),
        )  # fmt: skip
    with pytest.raises(ValueError, match="shortcut_steps=4, this run 8"):
        open_run(
            tmp_path / "third",
            None,
            ["shortcut_steps=8"],
            resume=False,
            stage="all",
            data=data,
            ranks=ALONE,
            init=str(run.path),
        )
    assert not (tmp_path / "third").exists()
