"""Small datasets of noise, for tests of what reads, writes and moves them."""

import numpy as np

from farworld.actions import Action, ActionVocabulary
from farworld.dataset import DatasetSpec, Episode, create_or_open

VOCABULARY = ActionVocabulary((Action(name="noop"), Action(name="forward", keys=("up",))))


def make_spec(**changes):
    values = {"env_id": "test", "height": 16, "width": 32, "frames_per_second": 5.0}
    return DatasetSpec(**{**values, "action_vocabulary": VOCABULARY, **changes})


def make_episode(num_frames=40, index=0, **changes):
    rng = np.random.default_rng(index)
    values = {
        "frames": rng.integers(0, 256, (num_frames, 16, 32, 3), dtype=np.uint8),
        "actions": rng.integers(0, 2, num_frames - 1),
        "rewards": rng.normal(size=num_frames - 1).astype(np.float32),
        "seed": 7,
        "index": index,
    }
    return Episode(**{**values, **changes})


def fill(folder, numbers, spec=None, num_frames=40, **changes):
    """Write episodes of these numbers; the folder."""
    with create_or_open(folder, spec or make_spec()) as writer:
        for index in numbers:
            writer.write(make_episode(num_frames, index=index, **changes))
    return folder


def same_episodes(read, written):
    """Compare everything but the number."""
    for name in ("frames", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    for name in ("terminated", "truncated", "seed", "source", "policy"):
        assert getattr(read, name) == getattr(written, name)
    assert read.env_actions.keys() == written.env_actions.keys()
    for key, array in written.env_actions.items():
        np.testing.assert_array_equal(read.env_actions[key], array)
        assert read.env_actions[key].dtype == array.dtype
