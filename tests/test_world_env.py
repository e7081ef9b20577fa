import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import farworld  # noqa: F401  (registers the environment)


@pytest.fixture
def make(tiny_world_path):
    return lambda **kwargs: gymnasium.make("farworld/World-v0", ckpt=tiny_world_path, **kwargs)


def play(env, seed, actions=(1, 2, 4, 0, 3, 1)):
    return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])


@pytest.mark.filterwarnings("ignore:.*render_fps.*:UserWarning")
def test_the_learned_world_keeps_the_gymnasium_contract(make):
    check_env(make(render_mode="rgb_array").unwrapped)


def test_spaces_and_speed_are_those_of_the_world(make):
    env = make(render_mode="rgb_array").unwrapped
    assert env.observation_space.shape == (32, 32, 3) and env.observation_space.dtype == np.uint8
    assert env.action_space.n == len(env.action_vocabulary) == 5
    assert env.metadata["render_fps"] == 20


def test_same_seed_and_actions_give_the_same_frames(make):
    first = play(make(), seed=5)
    env = make()
    play(env, seed=6)
    assert np.array_equal(play(env, seed=5), first)
    assert not np.array_equal(play(env, seed=6), first)


def test_the_action_changes_the_next_frame(make):
    """Not the one after it."""
    forward, left = play(make(start=0), 0, [1]), play(make(start=0), 0, [2])
    assert np.array_equal(forward[0], left[0]) and not np.array_equal(forward[1], left[1])


def test_a_world_starts_at_any_of_its_contexts_unless_told(make):
    env = make()
    assert {env.reset(seed=seed)[1]["start"] for seed in range(12)} == {0, 1}
    env = make(start=1)
    assert {env.reset(seed=seed)[1]["start"] for seed in range(4)} == {1}


def test_info_counts_frames_and_render_shows_the_observation(make):
    env = make(render_mode="rgb_array")
    assert env.reset(seed=0)[1]["frame"] == 0
    observation, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated, info["frame"]) == (0.0, False, False, 1)
    assert np.array_equal(env.render(), observation)


def test_time_limit_truncates(make):
    env = make(max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("action", [-1, 5, 1.5, "forward"])
def test_an_action_outside_the_vocabulary_is_an_error_that_names_the_range(make, action):
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\[0, 4\].*noop, forward"):
        env.step(action)


def test_a_step_before_the_reset_is_an_error(make):
    with pytest.raises(gymnasium.error.ResetNeeded):
        make().unwrapped.step(0)


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"start": 2}, "start"),
        ({"device": "abacus"}, "abacus.*cpu"),
        ({"num_steps": 0}, "step"),
        ({"context_frames": 2}, "at least the short-term window of 4"),
    ],
)
def test_a_wrong_argument_is_an_error(make, kwargs, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**kwargs)
