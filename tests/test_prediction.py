"""Prediction judged by models whose scores are known: the true world replayed, and broken ones."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_data import fill, make_spec
from test_lpips import EXPECTED, EXPECTED_UNSCALED, pairs

from farworld.actions import Action, ActionVocabulary
from farworld.dataset import Dataset, Episode, create_or_open
from farworld.envs.maze import MazeEnv
from farworld.train.frechet import ClipFeatures
from farworld.train.i3d import I3D, VideoLogits
from farworld.train.lpips import load_lpips
from farworld.train.prediction import (
    STAND_IN,
    Evaluation,
    Instruments,
    PredictionTask,
    Shelf,
    far_videos,
    frame_scores,
    frames_per_second,
    long_enough,
    predictors_of,
    reconstruct_with,
    roll_out,
    trade_off,
)

CONTEXT, PREDICT, EPISODES = 3, 12, 3
TASK = PredictionTask(context=CONTEXT, predict=PREDICT)


@pytest.fixture(scope="module")
def instruments():
    return Instruments(lpips=load_lpips())


def make_env():
    return MazeEnv(actions="walk", grid_size=5)


@functools.cache
def first_frames():
    """What the episodes' mazes look like at first."""
    return [make_env().reset(seed=seed)[0] for seed in range(EPISODES)]


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """Three walks through mazes, 64×64 pixels, and their seeds in the episodes."""
    folder = tmp_path_factory.mktemp("maze")
    env = make_env()
    vocabulary = ActionVocabulary(tuple(Action(name=f"move {i}") for i in range(int(env.action_space.n))))
    spec = make_spec(height=64, width=64, action_vocabulary=vocabulary)
    with create_or_open(folder, spec) as writer:
        for seed in range(EPISODES):
            frames = [env.reset(seed=seed)[0]]
            actions = np.random.default_rng(seed).integers(1, len(vocabulary), CONTEXT + PREDICT)
            frames += [env.step(int(action))[0] for action in actions]
            rewards = np.zeros(len(actions), np.float32)
            writer.write(Episode(frames=np.stack(frames), actions=actions, rewards=rewards, seed=seed, index=seed))
    return Dataset(folder)


class Frozen:
    """Holds the last true frame."""

    def prime(self, frames, actions, *, seed=0):
        """Keep it."""
        self.last = frames[:, -1]

    def step(self, action):
        """Show it."""
        return self.last


class TrueWorld:
    """The world itself, started with the seed that shows the first frame."""

    def __init__(self, num_streams):
        self.envs = [make_env() for _ in range(num_streams)]

    def prime(self, frames, actions, *, seed=0):
        """Find the seeds, and repeat the actions."""
        for env, context, taken in zip(self.envs, frames, actions, strict=True):
            env.reset(seed=next(seed for seed, frame in enumerate(first_frames()) if (frame == context[0]).all()))
            for action in taken:
                env.step(int(action))

    def step(self, action):
        """Act."""
        return np.stack([env.step(int(a))[0] for env, a in zip(self.envs, action, strict=True)])


class NoisyWorld(TrueWorld):
    """The true world behind noise that is stronger in every second stream, and with every seed another."""

    def prime(self, frames, actions, *, seed=0):
        """As the true world."""
        super().prime(frames, actions, seed=seed)
        self.rng = np.random.default_rng(seed)

    def step(self, action):
        """Act, and spoil what is seen."""
        frames = super().step(action)
        strength = np.where(np.arange(len(frames)) % 2, 60, 20)[:, None, None, None]
        return np.clip(frames + strength * self.rng.normal(size=frames.shape), 0, 255).astype(np.uint8)


def judge(predictor, data, instruments, task=TASK, **options):
    evaluation = Evaluation(make_predictor=predictor, data=data, task=task, instruments=instruments)
    return evaluation.run("test", range(len(data)), **options)


@pytest.fixture(scope="module")
def verdicts(maze, instruments):
    """Summaries of the true world and of broken ones."""
    shuffled = PredictionTask(context=CONTEXT, predict=PREDICT, shuffle_actions=True)
    runs = {
        "truth": judge(TrueWorld, maze, instruments),
        "shuffled": judge(TrueWorld, maze, instruments, shuffled),
        "frozen": judge(lambda num_streams: Frozen(), maze, instruments),
        "noise": judge(NoisyWorld, maze, instruments),
    }
    return {name: result for name, (result, _) in runs.items()}


def test_the_true_world_replayed_is_perfect(verdicts):
    summary = verdicts["truth"]["summary"]
    assert summary["teco.psnr"] == 100.0  # the cap of an exact frame
    assert summary["teco.ssim"] == pytest.approx(1, abs=1e-4)
    assert summary["teco.lpips"] == 0
    assert summary[f"teco.{STAND_IN}"] == pytest.approx(0, abs=1e-6)


def test_even_the_true_world_is_not_perfect_behind_a_lossy_file(verdicts):
    """FAR's way has a ceiling below infinity: the codec spoils both halves of the picture differently."""
    summary = verdicts["truth"]["summary"]
    assert 25 < summary["far.psnr"] < 60 and 0.9 < summary["far.ssim"] < 1 and 0 < summary["far.lpips"] < 0.1


@pytest.mark.parametrize("broken", ["shuffled", "frozen", "noise"])
def test_broken_worlds_score_worse_than_the_truth_in_every_figure(verdicts, broken):
    truth, worse = verdicts["truth"]["summary"], verdicts[broken]["summary"]
    for mode in ("teco", "far"):
        for metric, sign in (("psnr", 1), ("ssim", 1), ("lpips", -1)):
            assert sign * truth[f"{mode}.{metric}"] > sign * worse[f"{mode}.{metric}"] + 0.02, (mode, metric)
    assert worse[f"teco.{STAND_IN}"] > truth[f"teco.{STAND_IN}"] + 0.05


def test_a_frozen_model_scores_what_the_floor_in_every_table_says(verdicts):
    summary = verdicts["frozen"]["summary"]
    for metric in ("psnr", "ssim", "lpips", STAND_IN):
        assert summary[f"teco.{metric}"] == pytest.approx(summary[f"frozen.{metric}"], abs=1e-5)
    assert verdicts["truth"]["summary"]["frozen.psnr"] == pytest.approx(summary["frozen.psnr"], abs=1e-6)


def test_curves_tell_when_it_goes_wrong(verdicts):
    """A frozen model is better at first than later; the truth is level."""
    curve = verdicts["frozen"]["series"]["teco.psnr"]
    assert len(curve) == PREDICT and np.mean(curve[:3]) > np.mean(curve[-3:]) + 1
    assert verdicts["truth"]["series"]["teco.psnr"] == [100.0] * PREDICT


def test_noise_scores_what_its_strength_predicts(maze, instruments):
    """Unclipped noise of 20 grey levels is 22.1 dB; clipping takes some of it away."""
    result, _ = judge(NoisyWorld, maze, instruments, PredictionTask(context=CONTEXT, predict=2), batch_size=1)
    assert result["summary"]["teco.psnr"] == pytest.approx(20 * np.log10(255 / 20), abs=1)


def numpy_psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def numpy_ssim(a, b, borders):
    """Wang et al. 2004: windows of 11, Gaussian of 1.5; the mean over channels and places where they fit, or all."""
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    kernel /= kernel.sum()

    def blur(x):
        for axis in (0, 1):
            x = np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="valid"), axis, x)
        return x

    if borders:
        a, b = (np.pad(x, ((5, 5), (5, 5), (0, 0)), mode="reflect") for x in (a, b))
    a, b = a.astype(float), b.astype(float)
    mean_a, mean_b = blur(a), blur(b)
    spread_a, spread_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    together = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (
        (2 * mean_a * mean_b + c1) * (2 * together + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))
    ).mean()


def frame_pairs(kind):
    if kind == "real":
        frames = np.load(Path(__file__).parent / "data" / "dmlab_teco_episode.npz")["video"]
        return frames[[0, 0, 40]], frames[[1, 40, 90]]
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 256, (3, 40, 56, 3), dtype=np.uint8) for _ in range(2))


@pytest.mark.parametrize("kind", ["real", "random"])
@pytest.mark.parametrize("as_far", [False, True])
def test_psnr_and_ssim_are_those_of_their_formulas(kind, as_far):
    """TECO's SSIM stays inside the frame; FAR's looks over its mirrored borders, as torchmetrics does since 1.5."""
    a, b = frame_pairs(kind)
    scores = frame_scores(a, b, Instruments(), as_far=as_far)
    both = [*zip(a, b, strict=True)]
    np.testing.assert_allclose(scores["psnr"], [numpy_psnr(*pair) for pair in both], atol=1e-4)
    np.testing.assert_allclose(scores["ssim"], [numpy_ssim(*pair, as_far) for pair in both], atol=1e-4)
    assert "lpips" not in scores


@pytest.mark.parametrize("kind", ["real", "random"])
def test_fars_psnr_and_ssim_are_those_of_the_classes_that_its_code_uses(kind):
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    a, b = frame_pairs(kind)
    scores = frame_scores(a, b, Instruments(), as_far=True)
    images = [torch.from_numpy(x).permute(0, 3, 1, 2) / 255.0 for x in (a, b)]
    theirs = PeakSignalNoiseRatio(data_range=1.0, reduction="none", dim=[1, 2, 3])(*images)
    np.testing.assert_allclose(scores["psnr"], theirs, atol=1e-4)
    np.testing.assert_allclose(
        scores["ssim"], StructuralSimilarityIndexMeasure(data_range=1.0, reduction="none")(*images), atol=1e-4
    )


@pytest.mark.parametrize(("as_far", "expected"), [(False, EXPECTED), (True, EXPECTED_UNSCALED)])
def test_lpips_is_rescaled_for_teco_and_not_for_far(instruments, as_far, expected):
    a, b = (((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy() for images in pairs())
    scores = frame_scores(a, b, instruments, as_far=as_far)
    np.testing.assert_allclose(scores["lpips"], expected, atol=1e-4)


def reds(frames):
    """Whether the border of frames (…, H, W, 3) is red, after a lossy codec."""
    edges = np.concatenate([frames[..., 0, :, :], frames[..., -1, :, :]], axis=-2).astype(float).mean(axis=-2)
    return (edges[..., 0] > 150) & (edges[..., 1] < 90) & (edges[..., 2] < 90)


@pytest.mark.parametrize(("context", "predict", "painted"), [(3, 5, True), (36, 264, False)])
def test_fars_videos_are_lossy_and_painted_on_the_context(context, predict, painted):
    """Both halves; except where the options of the official FVD tests leave the border out."""
    levels = np.random.default_rng(0).integers(60, 200, (2, 1 + 2 * predict, 1, 1, 1))
    greys = levels.repeat(32, 2).repeat(48, 3).repeat(3, 4).astype(np.uint8)
    drawn = np.stack([greys[:, 1 : 1 + predict], greys[:, 1 + predict :]], axis=1)
    truth = greys[:, :1].repeat(context + predict, axis=1)
    dream, real = far_videos(drawn, truth, 255 - truth[:, :context])
    assert dream.shape == real.shape == (2, 2, context + predict, 32, 48, 3)
    assert reds(dream[:, :, :context]).all() == reds(real[:, :, :context]).all() == painted
    assert not reds(dream[:, :, context:]).any() and not reds(real[:, :, context:]).any()
    inner = (slice(None),) * 3 + (slice(4, -4), slice(4, -4))
    # Each half and each trajectory is where it was, up to what the codec lost.
    for found, expected in ((dream[:, :, context:], drawn), (real, truth[:, None].repeat(2, axis=1))):
        errors = np.abs(found[inner].astype(int) - expected[inner])
        assert errors.mean() < 20 and errors.any()
    seen = dream[:, :, :context][inner].astype(int) - (255 - truth[:, None, :context][inner].astype(int))
    assert np.abs(seen).mean() < 20


def test_several_trajectories_count_by_their_mean_and_by_the_best_of_them(maze, instruments):
    """In FAR's way the best of them; of MSE the worst, as the official code has it."""
    task = PredictionTask(context=CONTEXT, predict=2, trajectories=2)
    result, _ = judge(NoisyWorld, maze, instruments, task)
    summary = result["summary"]
    strong, weak = 20 * np.log10(255 / 60), 20 * np.log10(255 / 20)
    assert summary["teco, best of 2.psnr"] == pytest.approx(weak, abs=1)
    assert summary["teco.psnr"] == pytest.approx((strong + weak) / 2, abs=2)
    assert summary["teco, best of 2.lpips"] < summary["teco.lpips"] - 0.02
    assert summary["far.psnr"] > summary["teco.psnr"] + 2
    assert summary["far.mse"] > 10 ** (-summary["far.psnr"] / 10) * 2


def test_seeds_give_a_spread_and_say_so(maze, instruments):
    task = PredictionTask(context=CONTEXT, predict=2, seeds=3)
    result, _ = judge(NoisyWorld, maze, instruments, task)
    scores = np.array(result["scores"]["teco.psnr"])
    row = next(row for row in result["table"] if row["mode"] == "teco" and "PSNR" in row["metric"])
    assert scores.shape == (3, EPISODES)
    assert row["± seeds"] == pytest.approx(scores.mean(axis=1).std(ddof=1), rel=1e-3) and row["± seeds"] > 0
    assert row["± episodes"] == pytest.approx(scores.mean(axis=0).std(ddof=1) / np.sqrt(EPISODES), rel=1e-3)
    assert judge(NoisyWorld, maze, instruments, task)[0] == result
    (first, _), (second, _) = (
        judge(NoisyWorld, maze, instruments, PredictionTask(context=CONTEXT, predict=2, seed=seed)) for seed in (0, 1)
    )
    np.testing.assert_allclose([*first["scores"]["teco.psnr"], *second["scores"]["teco.psnr"]], scores[:2])


class Colours(torch.nn.Module):
    """Stands in for I3D: the mean colours of every frame, which frames are looked at being what is tested."""

    def forward(self, videos):
        """(B, F, H, W, 3) to (B, 3 F)."""
        self.lengths = {*getattr(self, "lengths", ()), videos.shape[1]}
        return videos.float().mean(dim=(2, 3)).flatten(1)


def test_fvd_is_of_whole_videos_and_of_the_lossy_painted_ones_in_fars_way(maze):
    """The context is true in TECO's way, so that a perfect world is at no distance from the truth."""
    colours = Colours()
    measure = Instruments(i3d=colours)
    task = PredictionTask(context=CONTEXT, predict=6)
    spoiler = Evaluation(
        make_predictor=TrueWorld, data=maze, task=task, instruments=measure, reconstruct=lambda frames: frames // 2
    )
    result, _ = spoiler.run("test", range(len(maze)))
    assert colours.lengths == {CONTEXT + 6}
    assert result["summary"]["teco.fvd"] == pytest.approx(0, abs=1e-6)
    assert result["summary"]["far.fvd"] > 100  # the darkened context
    assert [row["mode"] for row in result["table"] if row["metric"] == "FVD"] == ["teco", "far"]
    assert "FVD of 3 videos: published values take 256" in " ".join(result["notes"])
    assert judge(lambda n: Frozen(), maze, measure, task)[0]["summary"]["teco.fvd"] > 100


def test_videos_show_truth_dream_and_difference(maze, instruments):
    _, videos = judge(TrueWorld, maze, instruments, num_shown=2, batch_size=1)
    assert [*videos] == ["test: episode-000000", "test: episode-000001"]
    frames = videos["test: episode-000001"]
    assert frames.shape == (PREDICT, 64, 3 * 64 + 4, 3)
    np.testing.assert_array_equal(frames[:, :, :64], maze.frames(1)[CONTEXT : CONTEXT + PREDICT])
    np.testing.assert_array_equal(frames[:, :, 66:130], frames[:, :, :64])
    assert (frames[:, :, 132:] == 128).all()


def test_an_interrupted_evaluation_goes_on_from_the_batches_that_it_finished(maze, instruments, tmp_path):
    made = []

    def counting(num_streams):
        made.append(num_streams)
        if len(made) == 3:
            raise KeyboardInterrupt
        return NoisyWorld(num_streams)

    task = PredictionTask(context=CONTEXT, predict=2, seeds=2)
    options = {"batch_size": 1, "num_shown": 1}
    with pytest.raises(KeyboardInterrupt):
        judge(counting, maze, instruments, task, shelf=Shelf(tmp_path), **options)
    done: list[int] = []
    again = judge(counting, maze, instruments, task, shelf=Shelf(tmp_path), advance=done.append, **options)
    assert len(made) == 3 + 2 * EPISODES - 2 and sum(done) == 2 * EPISODES * 2
    afresh = judge(NoisyWorld, maze, instruments, task, **options)
    assert again[0] == afresh[0] and again[1].keys() == afresh[1].keys()
    judge(counting, maze, instruments, task, shelf=Shelf(tmp_path, {"steps": 2}), **options)
    assert len(made) == 3 + 2 * EPISODES - 2 + 2 * EPISODES  # nothing was taken from other settings


def test_episodes_that_are_too_short_are_left_out_and_an_error_if_all_are(tmp_path):
    fill(tmp_path, [0, 2], num_frames=10)
    fill(tmp_path, [1, 3], num_frames=20)
    data = Dataset(tmp_path)
    assert long_enough(data, PredictionTask(context=4, predict=16)) == [1, 3]
    assert long_enough(data, PredictionTask(context=4, predict=6), most=3) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"need episodes of 21 frames, the longest of .* has 20; record longer"):
        long_enough(data, PredictionTask(context=5, predict=16))


@pytest.mark.parametrize("name", ["context", "predict", "seeds", "trajectories"])
def test_tasks_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=f"--{name} must be 1 or more, got 0"):
        PredictionTask(**{name: 0})


@pytest.fixture(scope="module")
def tiny(tiny_world_path):
    from farworld.checkpoint import load_world

    return load_world(tiny_world_path).model


@pytest.fixture
def noise_data(tmp_path, tiny):
    spec = make_spec(height=32, width=32, action_vocabulary=tiny.config.vocabulary)
    with create_or_open(tmp_path / "data", spec) as writer:
        for index in range(3):
            rng = np.random.default_rng(index)
            frames, actions = rng.integers(0, 256, (16, 32, 32, 3), np.uint8), rng.integers(0, 5, 15)
            rewards = np.zeros(15, np.float32)
            writer.write(Episode(frames=frames, actions=actions, rewards=rewards, seed=0, index=index))
    return Dataset(tmp_path / "data")


def test_a_rollout_is_judged_by_its_own_dreams(tiny, noise_data):
    """What the evaluation scores is what the rollout draws when it is used by hand."""
    task = PredictionTask(context=6, predict=5)
    make = predictors_of(tiny, remember=11)
    evaluation = Evaluation(
        make_predictor=make, data=noise_data, task=task, instruments=Instruments(), reconstruct=reconstruct_with(tiny)
    )
    result, _ = evaluation.run("tiny", [1], batch_size=4)
    frames, actions = noise_data.frames(1)[None], noise_data.actions(1)[None]
    rollout = make(1)
    rollout.prime(frames[:, :6], actions[:, :5], seed=int(np.random.SeedSequence([0, 1]).generate_state(1)[0]))
    drawn = np.stack([rollout.step(actions[:, t]) for t in range(5, 10)], axis=1)
    expected = [numpy_psnr(a, b) for a, b in zip(drawn[0], frames[0, 6:11], strict=True)]
    np.testing.assert_allclose(result["series"]["teco.psnr"], expected, atol=1e-4)
    again = torch.from_numpy(frames[:, 6:11])
    ceiling = [
        numpy_psnr(a, b) for a, b in zip(tiny.decode(tiny.encode(again)[0]).numpy(), frames[0, 6:11], strict=True)
    ]
    np.testing.assert_allclose(result["series"]["autoencoder.psnr"], ceiling, atol=1e-4)


def test_the_action_behind_the_context_produces_the_first_predicted_frame():
    taken = []

    class Watcher(Frozen):
        def step(self, action):
            taken.append(action.tolist())
            return super().step(action)

    frames = np.zeros((2, 4, 16, 16, 3), np.uint8)
    actions = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    drawn = roll_out(Watcher(), frames, actions, 4)
    assert taken == [[3, 8], [4, 9]] and drawn.shape == (2, 2, 16, 16, 3)


def test_quality_against_speed_has_a_row_for_each_number_of_steps(tiny, noise_data):
    task = PredictionTask(context=6, predict=5)
    results, speeds = {}, {}
    for steps in (1, 3):
        make = predictors_of(tiny, remember=11, num_steps=steps)
        evaluation = Evaluation(make_predictor=make, data=noise_data, task=task, instruments=Instruments())
        results[steps], _ = evaluation.run(f"{steps}", [0])
        speeds[steps] = frames_per_second(make, noise_data.frames(0), noise_data.actions(0), 6)
    both = trade_off(results, speeds)
    rows = {row["figure"]: row for row in both["table"]}
    assert [*rows["frames/s"]] == ["figure", "1 step", "3 steps"] and min(speeds.values()) > 0
    assert (rows["frames/s"]["1 step"], rows["frames/s"]["3 steps"]) == (speeds[1], speeds[3])
    assert rows["teco.psnr"]["3 steps"] == results[3]["summary"]["teco.psnr"]
    assert both["summary"]["steps of the best teco.psnr"] == max(
        results, key=lambda n: results[n]["summary"]["teco.psnr"]
    )
    assert both["plots"][0]["lines"]["teco"] == [[speeds[n], results[n]["summary"]["teco.psnr"]] for n in (1, 3)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_on_a_gpu_are_those_on_the_cpu(instruments):
    a, b = frame_pairs("real")
    there = Instruments(device=torch.device("cuda"), lpips=load_lpips("cuda"))
    expected = frame_scores(a, b, instruments)
    for name, values in frame_scores(a, b, there).items():
        np.testing.assert_allclose(values, expected[name], atol=2e-3)
    videos = torch.from_numpy(np.stack([a, b]))
    torch.testing.assert_close(
        ClipFeatures(there.lpips)(videos), ClipFeatures(instruments.lpips)(videos), atol=1e-2, rtol=1e-2
    )
    network = VideoLogits(I3D())
    video = torch.from_numpy(a[:1]).repeat(9, 1, 1, 1)[None]
    torch.testing.assert_close(network.to("cuda")(video).cpu(), network.to("cpu")(video), atol=1e-2, rtol=1e-2)
