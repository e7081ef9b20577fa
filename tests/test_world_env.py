import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

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
        ({"num_steps": 1.5}, "num_steps must be a whole number, got 1.5"),
        ({"context_frames": "64"}, "context_frames must be a whole number, got '64'"),
        ({"start": 0.5}, "start must be a whole number, got 0.5"),
        ({"context_frames": 2}, "at least the short-term window of 4"),
    ],
)
def test_a_wrong_argument_is_an_error(make, kwargs, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**kwargs)


# Many at once


MODES = list(AutoresetMode)


@pytest.fixture
def make_many(tiny_world_path):
    return lambda **kwargs: gymnasium.make_vec(
        "farworld/World-v0", vectorization_mode="vector_entry_point", ckpt=tiny_world_path, **kwargs
    )


def assert_alike(ours, theirs):
    """Batches round differently: a grey level of tolerance, and none for all the rest."""
    assert ours.keys() == theirs.keys() if isinstance(ours, dict) else True
    if isinstance(ours, dict):
        for key, value in ours.items():
            assert_alike(value, theirs[key])
    elif ours.dtype == object:
        assert [one is None for one in ours] == [one is None for one in theirs]
        assert all(np.abs(a - b.astype(int)).max() <= 1 for a, b in zip(ours, theirs, strict=True) if a is not None)
    else:
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", [None, 1])
def test_many_at_once_are_each_the_environment_that_they_would_be_alone(make_many, tiny_world_path, mode, start):
    """Gymnasium's own vector of single environments is the judge: starts, frames, ends, infos, in all modes.

    The start contexts have different lengths, and a reset of some sets the episodes against each other.
    """
    kwargs = {"max_episode_steps": 5, "start": start}
    ours = make_many(num_envs=3, autoreset_mode=mode, **kwargs)
    theirs = gymnasium.make_vec(
        "farworld/World-v0", num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode},
        ckpt=tiny_world_path, **kwargs,
    )  # fmt: skip
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is mode
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    for one, other in zip(ours.reset(seed=4), theirs.reset(seed=4), strict=True):
        assert_alike(one, other)
    rng = np.random.default_rng(0)
    ended = 0
    for step in range(24):
        actions = rng.integers(5, size=3)
        for one, other in zip(results := ours.step(actions), theirs.step(actions), strict=True):
            assert_alike(one, other)
        truncated = results[3]
        ended += truncated.sum()
        mask = np.array([step == 2, False, step == 2])
        if mode is AutoresetMode.DISABLED and truncated.any():
            with pytest.raises(gymnasium.error.ResetNeeded, match="reset_mask"):
                ours.step(actions)
            mask = truncated
        if mask.any():
            pair = (envs.reset(seed=[7, None, None], options={"reset_mask": mask.copy()}) for envs in (ours, theirs))
            for one, other in zip(*pair, strict=True):
                assert_alike(one, other)
    assert ended >= 9


def test_seeds_of_many_may_be_numpys(make_many):
    envs = make_many(num_envs=2)
    expected = envs.reset(seed=[3, 4])[0]
    for seed in (3, np.int64(3), np.array([3, 4]), (3, 4)):
        assert np.array_equal(envs.reset(seed=seed)[0], expected)


def test_frames_that_were_given_stay_as_they_are(make_many):
    envs = make_many(num_envs=2, max_episode_steps=2, render_mode="rgb_array")
    assert envs.metadata["render_fps"] == 20
    frames = [envs.reset(seed=0)[0]]
    kept = [frames[0].copy()]
    for _ in range(5):
        frames.append(envs.step(np.array([1, 2]))[0])
        kept.append(frames[-1].copy())
        assert np.array_equal(np.stack(envs.render()), frames[-1])
        frames[-1][:] += 1
    assert all(np.array_equal(one, other + (i > 0)) for i, (one, other) in enumerate(zip(frames, kept, strict=True)))


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"autoreset_mode": "Never"}, "Never"),
        ({"start": 2}, "start"),
        ({"render_mode": "human"}, "rgb_array"),
    ],
)
def test_a_wrong_argument_of_many_is_an_error(make_many, kwargs, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_many(**{"num_envs": 2, **kwargs})


def test_misuse_of_many_is_said_in_one_line(make_many):
    envs = make_many(num_envs=2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(np.array([0, 0]))
    some = np.array([True, False])
    with pytest.raises(ValueError, match="first reset"):
        envs.reset(options={"reset_mask": some})
    envs.reset(seed=0)
    for wrong in ([True, False], np.array([1, 0]), np.array([True])):
        with pytest.raises(ValueError, match="reset_mask"):
            envs.reset(options={"reset_mask": wrong})
    with pytest.raises(ValueError, match="an environment to reset, got none"):
        envs.reset(options={"reset_mask": np.array([False, False])})
    for seeds in ([1, 2, 3], []):
        with pytest.raises(ValueError, match="seed for each of 2"):
            envs.reset(seed=seeds)
    for actions in (np.array([0, 5]), np.array([0.0, 1.0]), np.array([0, 0, 0])):
        with pytest.raises(ValueError, match=r"\[0, 4\]|integers of shape"):
            envs.step(actions)
