import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from farworld import checkpoint
from farworld.checkpoint import (
    AUTOENCODER_FILE,
    CARD_FILE,
    CONFIG_FILE,
    CONTEXTS_FILE,
    MODEL_FILE,
    Context,
    load_world,
    resolve,
    save_world,
)
from farworld.world_model import WorldModel


@pytest.fixture
def world_path(tiny_world_path, tmp_path):
    """A copy of the tiny world that a test may damage."""
    return shutil.copytree(tiny_world_path, tmp_path / "world")


@pytest.fixture
def bundled(monkeypatch):
    """The names of the bundled worlds, whether they are there or not."""
    monkeypatch.setattr(checkpoint, "bundled_worlds", lambda: ["dmlab", "minecraft"])


def edit(file, change):
    """Change a file's tensors, a dict, in place."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def save(path, model, contexts=(), card="# card\n"):
    save_world(path, model.config, model.transformer, model.autoencoder, list(contexts), card)


def random_model(config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WorldModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def with_batch_norm(config):
    return dataclasses.replace(config, autoencoder=dataclasses.replace(config.autoencoder, decoder_blocks=(1, 0)))


def episode(config, num_frames=8):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (num_frames, config.frame_height, config.frame_width, 3), np.uint8)
    return frames, rng.integers(0, len(config.vocabulary), num_frames - 1)


def test_a_world_comes_back_as_it_was_saved(tiny_world_path, tmp_path):
    """Matrices to float16 precision, vectors, config, starts and card exactly."""
    config = load_world(tiny_world_path).config
    model = random_model(config, seed=1)
    frames, actions = episode(config)
    save(tmp_path / "world", model, [Context(frames, actions), Context(frames[:1], actions[:0])], "# a card\n")
    loaded = load_world(tmp_path / "world")
    assert loaded.config == config and loaded.path == tmp_path / "world"
    stored, expected = loaded.model.state_dict(), model.state_dict()
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted = tensor.half().float() if tensor.ndim > 1 else tensor
        assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], wanted), name
    first, second = loaded.contexts
    assert np.array_equal(first.frames, frames) and np.array_equal(first.actions, actions)
    assert second.frames.shape[0] == 1 and second.actions.shape == (0,) and first.actions.dtype == np.int64
    assert (tmp_path / "world" / CARD_FILE).read_text() == "# a card\n"
    assert os.listdir(tmp_path) == ["world"]


def test_starts_may_be_slices_of_one_episode(tiny_world_path, tmp_path):
    """Tensors that share memory cannot be stored as they are."""
    model = load_world(tiny_world_path).model
    frames, actions = episode(model.config)
    starts = [Context(frames[:5], actions[:4]), Context(frames[3:], actions[3:]), Context(frames[::-1], actions[::-1])]
    save(tmp_path / "world", model, starts)
    for loaded, start in zip(load_world(tmp_path / "world").contexts, starts, strict=True):
        assert np.array_equal(loaded.frames, start.frames) and np.array_equal(loaded.actions, start.actions)


def test_batch_norm_variances_beyond_float16_survive(tiny_world_path, tmp_path):
    model = random_model(with_batch_norm(load_world(tiny_world_path).config))
    names = [name for name, _ in model.named_buffers() if name.endswith("running_var")]
    for name in names:
        model.get_buffer(name).fill_(1e6)
    save(tmp_path / "world", model)
    stored = load_world(tmp_path / "world").model
    assert names and all((stored.get_buffer(name) == 1e6).all() for name in names)


@pytest.mark.parametrize(
    ("value", "complaint"), [(np.nan, "not finite; the training has diverged"), (1e5, "beyond float16, up to 1e[+]05")]
)
def test_weights_that_float16_cannot_hold_are_refused_and_the_old_world_stays(world_path, value, complaint):
    before = {file.name: file.read_bytes() for file in world_path.iterdir()}
    model = WorldModel(load_world(world_path).config)
    model.transformer.velocity_head.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=f"velocity_head.weight.*{complaint}"):
        save(world_path, model)
    assert {file.name: file.read_bytes() for file in world_path.iterdir()} == before


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_save_that_dies_loses_no_world_and_the_next_one_succeeds(world_path, monkeypatch, failing_rename):
    """Between the two renames the old world has left its place and the new one is not yet there."""
    old, rename, calls = load_world(world_path), Path.rename, []

    def dying_rename(path, target):
        calls.append(path)
        if len(calls) == failing_rename:
            raise KeyboardInterrupt
        return rename(path, target)

    new = random_model(old.config, seed=2)
    monkeypatch.setattr(Path, "rename", dying_rename)
    with pytest.raises(KeyboardInterrupt):
        save(world_path, new)
    monkeypatch.undo()

    def bias(model):
        return model.transformer.velocity_head.bias

    for name in (world_path, world_path.parent):  # a world, or the run whose world it is
        assert torch.equal(bias(load_world(name).model), bias(old.model))
    save(world_path, new)
    assert torch.equal(bias(load_world(world_path).model), bias(new))
    assert os.listdir(world_path.parent) == ["world"]


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize("file", [MODEL_FILE, AUTOENCODER_FILE])
def test_weights_that_do_not_fit_are_named(world_path, file):
    name, tensor = max(load_file(world_path / file).items(), key=lambda item: item[1].ndim)
    edit(world_path / file, put("surplus", tensor))
    with pytest.raises(ValueError, match=f"{file} holds 1 tensors that the model does not have, first 'surplus'"):
        load_world(world_path)
    edit(world_path / file, lambda tensors: (tensors.pop("surplus"), tensors.update({name: tensor[:-1].clone()})))
    with pytest.raises(ValueError, match=rf"{file}: tensor '{name}' must have shape \({len(tensor)}, .*, found \("):
        load_world(world_path)
    edit(world_path / file, drop(name))
    with pytest.raises(ValueError, match=rf"{file} lacks the tensor '{name}' of shape \({len(tensor)}, "):
        load_world(world_path)


FRAMES = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop("frames.0"), "lacks the tensor 'frames.0'"),
        (drop("actions.1"), "lacks the tensor 'actions.1'"),  # the second start used to vanish silently
        (lambda tensors: (tensors.pop("frames.0"), tensors.pop("actions.0")), "lacks the tensor 'frames.0'"),
        (put("rewards.0", torch.zeros(4)), "holds the tensor 'rewards.0'; expected frames.0, actions.0"),
        (put("frames.0", FRAMES.float()), r"'frames.0' must be uint8 of .*, found float32 of shape \(5, 32, 32, 3\)"),
        (put("frames.0", FRAMES[:, :16].clone()), r"must be .*\(1 or more,\) \+ \(32, 32, 3\), found .*\(5, 16, 32, 3"),
        (put("frames.0", FRAMES[:0].clone()), r"'frames.0' must be .*, found uint8 of shape \(0, 32, 32, 3\)"),
        (put("frames.0", FRAMES[0].clone()), r"'frames.0' must be .*, found uint8 of shape \(32, 32, 3\)"),
        (put("actions.0", torch.zeros(4)), r"'actions.0' must be integers of .*, found float32 of shape \(4,\)"),
        (put("actions.0", torch.zeros(5, dtype=int)), r"must be integers of shape \(4,\).*, found int64 of .*\(5,\)"),
        (put("actions.0", torch.tensor([0, 1, 5, 2])), r"'actions.0' must be in \[0, 4\].*, found 0 to 5"),
        (put("actions.0", torch.tensor([0, -1, 4, 2])), r"'actions.0' must be in \[0, 4\].*, found -1 to 4"),
    ],
)
def test_a_start_that_does_not_fit_is_named(world_path, change, complaint):
    edit(world_path / CONTEXTS_FILE, change)
    with pytest.raises(ValueError, match=rf"{CONTEXTS_FILE}.*{complaint}"):
        load_world(world_path)


@pytest.mark.parametrize("file", [MODEL_FILE, AUTOENCODER_FILE, CONTEXTS_FILE])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 64])
def test_a_damaged_file_is_named(world_path, file, damage):
    (world_path / file).write_bytes(damage((world_path / file).read_bytes()))
    with pytest.raises(ValueError, match=f"{file} is damaged or no safetensors file.*fetch or export it again"):
        load_world(world_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b"null", "expected a JSON object, got NoneType"),
        (b"{}", "expected format 'farworld-world' version 1, got None version None"),
    ],
)
def test_a_damaged_config_is_named(world_path, content, complaint):
    (world_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"{CONFIG_FILE}.*{complaint}"):
        load_world(world_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop("frames_per_second"), "frames_per_second"),
        (put("colour", "red"), "colour"),
        (put("frames_per_second", 0), "frames_per_second must be above 0, got 0"),
        (put("model", [1]), "a field is missing or unknown"),
        (put("vocabulary", [{"keys": []}]), "name"),
        (put("frame_height", 48), "frames of 32×32, but the config says 48×32"),
        (put("version", 2), "version 1, got 'farworld-world' version 2"),
    ],
)
def test_a_field_of_the_config_that_does_not_fit_is_named(world_path, change, complaint):
    values = json.loads((world_path / CONFIG_FILE).read_text())
    change(values)
    (world_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=complaint):
        load_world(world_path)


@pytest.mark.parametrize("file", [MODEL_FILE, AUTOENCODER_FILE, CONTEXTS_FILE])
def test_a_missing_file_is_named(world_path, file):
    (world_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {file}; copy or export it again"):
        load_world(world_path)


def test_a_folder_that_is_no_world_says_what_was_looked_for(world_path):
    (world_path / CONFIG_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"neither {world_path / CONFIG_FILE} nor .*world/{CONFIG_FILE} is"):
        resolve(world_path)


def test_a_run_folder_stands_for_its_world(world_path):
    assert resolve(world_path) == resolve(world_path.parent) == world_path
    assert load_world(str(world_path.parent)).path == world_path


@pytest.mark.parametrize(("name", "nearest"), [("mincraft", "minecraft"), ("DMLab", "dmlab"), ("zzz", None)])
def test_an_unknown_world_names_the_known_ones_and_the_nearest(bundled, tmp_path, monkeypatch, name, nearest):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"unknown world '{name}'.*bundled world \(dmlab, minecraft\)") as caught:
        resolve(name)
    assert str(caught.value).endswith(f"did you mean {nearest}?" if nearest else "owner/name")


def hub_failures():
    """What the hub's client raises without a network: its own errors, and those of its HTTP library."""
    from huggingface_hub import errors

    transport = errors.HfHubHTTPError.__bases__[0]
    return [
        errors.LocalEntryNotFoundError("cannot find the snapshot\nsecond line"),
        errors.HFValidationError("a name must be simple"),
        errors.CacheNotFound("no cache folder", "cache"),
        type("ProxyError", (transport,), {})("403 Forbidden"),
        ConnectionError("no route to host"),
        TimeoutError(),
    ]


@pytest.mark.parametrize("error", hub_failures(), ids=lambda error: type(error).__name__)
def test_a_hub_world_without_a_network_says_what_was_sought_and_how_to_go_on(tmp_path, monkeypatch, error):
    def no_network(name, *, revision, allow_patterns):
        assert (name, revision) == ("someone/a-world", "v2")
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(FileNotFoundError) as caught:
        load_world("someone/a-world@v2")
    message = str(caught.value)
    reason = (str(error) or "TimeoutError").splitlines()[0]
    for part in (str(tmp_path / "someone" / "a-world"), "hub repository someone/a-world at v2", f"({reason})",
                 "--ckpt path/to/world"):  # fmt: skip
        assert part in message
    assert "\n" not in message


def test_an_error_of_our_own_in_a_download_is_not_taken_for_the_network(monkeypatch):
    def broken(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(KeyError):
        resolve("someone/a-world")


def test_a_hub_world_is_loaded_from_where_it_was_put(world_path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(world_path))
    assert load_world("someone/a-world").path == world_path
    (world_path / CONFIG_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"someone/a-world holds no farworld world: {CONFIG_FILE} is missing"):
        load_world("someone/a-world")
