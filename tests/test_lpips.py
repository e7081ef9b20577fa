"""LPIPS: the values of an independent implementation, and what a loss needs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from farworld.train import lpips as module
from farworld.train.lpips import LPIPS, load_lpips

EPISODE = Path(__file__).parent / "data" / "dmlab_teco_episode.npz"
# Of the package `lpips` 0.1.4 (net="alex", float32 weights), for the pairs of `pairs()`; then of the same pairs in
# [0, 1], not rescaled.
EXPECTED = [0.17572, 0.55309, 0.36133, 0.43078, 0.03823]
EXPECTED_UNSCALED = [0.13281, 0.43538, 0.33952, 0.32168, 0.02676]


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return load_lpips()


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Frames 0 and 1, 0 and 10, 0 and 40, 0 and its negative, 40 and itself moved by four pixels; in [−1, 1]."""
    frames = np.load(EPISODE)["video"][[0, 1, 10, 40]]
    a, b, c, d = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.stack([a, a, a, a, d]), torch.stack([b, c, d, -a, d.roll(4, -1)])


def test_distances_are_those_of_the_reference_implementation(lpips):
    one, other = pairs()
    torch.testing.assert_close(lpips(one, other), torch.tensor(EXPECTED), atol=5e-5, rtol=0)


def test_images_in_unit_range_are_rescaled_on_request_only(lpips):
    """FAR's evaluation leaves them as they are; both ways have to be had."""
    one, other = ((images + 1) / 2 for images in pairs())
    rescaled, as_they_are = lpips(one, other, unit_range=True), lpips(one, other)
    torch.testing.assert_close(rescaled, torch.tensor(EXPECTED), atol=5e-5, rtol=0)
    torch.testing.assert_close(as_they_are, torch.tensor(EXPECTED_UNSCALED), atol=5e-5, rtol=0)


def test_equal_images_are_at_no_distance_and_the_order_does_not_matter(lpips):
    one, other = pairs()
    assert torch.equal(lpips(one, one.clone()), torch.zeros(5))
    torch.testing.assert_close(lpips(one, other), lpips(other, one), atol=1e-6, rtol=0)


def test_following_the_gradient_brings_an_image_closer(lpips):
    one, other = pairs()
    image = one[:1].clone().requires_grad_()
    before = lpips(image, other[:1])
    (gradient,) = torch.autograd.grad(before.sum(), image)
    assert gradient.isfinite().all()
    assert lpips(image - 0.002 * gradient / gradient.abs().mean(), other[:1]) < before - 0.005
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_pixels_without_active_features_are_equal_and_have_a_finite_gradient():
    """Their features have no length to be divided by, and the root of a sum of zeros has an infinite gradient."""
    blank = LPIPS()
    for parameter in blank.parameters():
        torch.nn.init.constant_(parameter, -0.01)
    image = torch.ones(1, 3, 32, 32, requires_grad=True)
    distance = blank(image, torch.zeros(1, 3, 32, 32)).sum()
    assert distance.item() == 0
    assert torch.autograd.grad(distance, image)[0].isfinite().all()


@pytest.mark.parametrize(("size", "fits"), [(30, False), (31, True)])
def test_images_that_are_too_small_are_named(lpips, size, fits):
    images = torch.zeros(1, 3, size, size)
    if fits:
        assert lpips(images, images).item() == 0
    else:
        with pytest.raises(ValueError, match="at least 31 pixels"):
            lpips(images, images)


def test_shapes_that_differ_are_named(lpips):
    with pytest.raises(ValueError, match=r"same shape.*\(1, 3, 32, 32\) and \(2, 3, 32, 32\)"):
        lpips(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))


def test_missing_weights_say_which_file_goes_where(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "weights_file", lambda: tmp_path / "alex_v0.1.safetensors")
    with pytest.raises(FileNotFoundError, match="alex_v0.1.safetensors is missing"):
        load_lpips()
