import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from farworld import ckpt_cli, official_worlds
from farworld.checkpoint import load_world, resolve
from farworld.cli import main
from farworld.models import official
from farworld.models.autoencoder import Autoencoder
from farworld.models.far import FAR
from farworld.official_worlds import DATASETS, START_FRAMES, convert, read_weights
from farworld.rollout import Rollout

DATA = Path(__file__).parent / "data"
REFERENCE = DATA / "reference"
LAYOUTS = sorted(path.stem for path in (DATA / "official_keys").glob("*.json"))
HUB = "guyuchao/FAR_Models"


def layout(name):
    """What is known of a model, with its shapes by full name."""
    known = json.loads((DATA / "official_keys" / f"{name}.json").read_text())

    def flatten(tree, prefix):
        for part, inner in tree.items():
            if isinstance(inner, dict):
                yield from flatten(inner, f"{prefix}{part}.")
            else:
                yield f"{prefix}{part}", tuple(inner)

    return {**known, "shapes": dict(flatten(known["shapes"], ""))}


def empty(shapes):
    """Tensors of shapes without memory."""
    types = {name: torch.int64 if name.endswith("num_batches_tracked") else torch.float32 for name in shapes}
    return {name: torch.empty(shape, dtype=types[name], device="meta") for name, shape in shapes.items()}


def shrunk(shapes):
    """Random tensors of a DC-AE layout with 8 latent channels and a sixteenth of all others."""
    generator = torch.Generator().manual_seed(0)

    def draw(name, shape):
        shape = [{32: 8}.get(size, size // 16 if size >= 64 else size) for size in shape]
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        return torch.rand(shape, generator=generator) * 0.1 + (0.5 if name.endswith(("running_var", "norm")) else 0)

    return {name: draw(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def far_weights():
    return load_file(REFERENCE / "far_long.weights.safetensors")


@pytest.fixture(scope="session")
def autoencoder_weights():
    return load_file(REFERENCE / "dcae.weights.safetensors")


@pytest.fixture(scope="session")
def files(tmp_path_factory, far_weights, autoencoder_weights):
    """A transformer and DC-AEs of 8× and 16× compression as the official ones are published, but small."""
    folder = tmp_path_factory.mktemp("official")
    torch.save(far_weights, folder / "far.pth")
    torch.save(autoencoder_weights, folder / "dcae8.pth")
    torch.save(shrunk(layout("MyAutoencoderDC_16x_c32")["shapes"]), folder / "dcae16.pth")
    return folder


@pytest.fixture(scope="session")
def dmlab(files):
    """The DMLab world of the small files."""
    convert("dmlab", files / "far.pth", files / "dcae8.pth", files / "dmlab")
    return load_world(files / "dmlab")


def call(monkeypatch, capsys, *arguments):
    """Run the command line in this process; its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["farworld", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.startswith("FAR")])
def test_every_official_transformer_maps_to_ours_completely_and_back(name):
    known = layout(name)
    config = official.far_config(known["config"], 8, 8, coarse_output=True)
    weights = empty(known["shapes"])
    with torch.device("meta"):
        model = FAR(config)
    model.load_state_dict(official.far_state_dict(weights, config), assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == known["total_parameters"]
    condition = (known["config"]["condition_cfg"] or {"type": "action"})["type"]
    back = official.official_gradients(dict(model.named_parameters()), config, condition=condition)
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == known["shapes"]
    window = known["config"]["short_term_ctx_winsize"]
    assert official.recognise_far(weights, 8, 8, short_term_frames=window, coarse_output=True) == config
    assert known["variant"].lower().startswith(official.variant_of(config))


@pytest.mark.parametrize("name", [name for name in LAYOUTS if not name.startswith("FAR")])
def test_every_official_autoencoder_maps_to_ours_completely(name):
    known = layout(name)
    config = official.autoencoder_config(known["config"])
    weights = empty(known["shapes"])
    with torch.device("meta"):
        model = Autoencoder(config)
    model.load_state_dict(official.autoencoder_state_dict(weights, config), assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == known["total_parameters"]
    assert official.recognise_autoencoder(weights) == config
    assert known["variant"].startswith(f"MyAutoencoderDC_{config.compression}x")


@pytest.mark.parametrize("case", ["64x64_linear_attention", "32x32_quadratic_attention", "32x48"])
def test_the_autoencoder_equals_the_official_one(autoencoder_weights, case):
    """Both official branches of attention, linear and quadratic, are our linear one."""
    info = json.loads((REFERENCE / f"e_dcae_{case}.json").read_text())
    tensors = load_file(REFERENCE / f"e_dcae_{case}.safetensors")
    config = official.autoencoder_config(info["config"])
    model = Autoencoder(config).eval()
    model.load_state_dict(
        official.autoencoder_state_dict(autoencoder_weights, config, info["config"]["scaling_factor"])
    )
    with torch.inference_mode():
        latents, decoded = model.encoder(tensors["images"]), model.decoder(tensors["latents"])
    torch.testing.assert_close(latents, tensors["latents"], rtol=0, atol=5e-5)
    torch.testing.assert_close(decoded, tensors["reconstructions"], rtol=0, atol=5e-5)
    assert torch.allclose(model.latent_scale, torch.tensor(0.2889)) and not model.latent_shift.any()


@pytest.mark.parametrize(("file", "condition"), [("far_long", "action"), ("far_short", "label")])
def test_there_and_back_is_the_same_bit_for_bit(file, condition):
    weights = load_file(REFERENCE / f"{file}.weights.safetensors")
    config = official.recognise_far(weights, 8, 8, coarse_output=True)
    back = official.official_gradients(official.far_state_dict(weights, config), config, condition=condition)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_a_tensor_that_is_not_ours_has_no_official_name(far_weights):
    config = official.recognise_far(far_weights, 8, 8)
    with pytest.raises(ValueError, match="no counterpart of 'copy_head.weight'"):
        official.official_gradients({"copy_head.weight": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="no copy gate"):
        official.far_state_dict(far_weights, dataclasses.replace(config, copy_gate=True))


def test_the_coarse_output_is_checked_and_then_left_out(far_weights):
    """Nothing needs it, but weights without it, or with another one, are not what they seem."""
    config = official.recognise_far(far_weights, 8, 8)
    assert not any("coarse_head" in name for name in official.far_state_dict(far_weights, config))
    with pytest.raises(ValueError, match=r"'context_proj_out.weight' in shape \(128, 128\), found \(1, 128\)"):
        official.far_state_dict({**far_weights, "context_proj_out.weight": torch.zeros(1, 128)}, config)


def map_far(weights):
    config = official.recognise_far(load_file(REFERENCE / "far_long.weights.safetensors"), 8, 8)
    return official.far_state_dict(weights, config)


def map_autoencoder(weights):
    config = official.recognise_autoencoder(load_file(REFERENCE / "dcae.weights.safetensors"))
    return official.autoencoder_state_dict(weights, config)


@pytest.mark.parametrize(
    ("file", "mapping", "name"),
    [
        ("far_long", map_far, "transformer_blocks.1.attn.add_k_proj.bias"),  # a part of a stacked tensor
        ("far_long", map_far, "norm_out.linear.weight"),
        ("far_long", map_far, "action_embedder.embedding_table.weight"),
        ("dcae", map_autoencoder, "encoder.down_blocks.3.0.attn.to_v.weight"),
        ("dcae", map_autoencoder, "decoder.up_blocks.2.1.norm.running_var"),
        ("dcae", map_autoencoder, "decoder.up_blocks.2.1.norm.num_batches_tracked"),
    ],
)
def test_a_tensor_that_is_missing_surplus_or_misshapen_is_named(file, mapping, name):
    weights = load_file(REFERENCE / f"{file}.weights.safetensors")
    mapping(weights)
    shape = tuple(weights[name].shape)
    with pytest.raises(ValueError) as missing:
        mapping({key: tensor for key, tensor in weights.items() if key != name})
    assert f"lack the tensor {name!r} of shape {shape}" in str(missing.value)
    with pytest.raises(ValueError) as misshapen:
        mapping({**weights, name: torch.zeros(3, *shape)})
    assert f"{name!r} in shape {shape}, found {(3, *shape)}" in str(misshapen.value)
    with pytest.raises(ValueError) as surplus:
        mapping({**weights, f"module.{name}": weights[name]})
    assert f"1 tensors that the model does not have, first 'module.{name}' of shape {shape}" in str(surplus.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"axes_dims_rope": [24, 20, 20]}, r"axes_dims_rope = \[16, 24, 24\], .*, got \[24, 20, 20\]"),
        ({"out_channels": 64}, "as many out_channels as in_channels, got 64 and 32"),
        ({"use_cross_attention": True}, "has the field 'use_cross_attention', which our model does not know"),
        ({"condition_cfg": {"type": "text", "num_classes": 3}}, "condition_cfg must be null"),
        ({"condition_cfg": {"type": "action", "num_classes": 3}}, "condition_cfg must be null"),
        ({"num_layers": None}, "lacks the field 'num_layers'"),
    ],
)
def test_an_official_config_that_is_not_our_model_is_refused(change, complaint):
    known = {**layout("FAR_B_Long_action4")["config"], **change}
    with pytest.raises(ValueError, match=complaint):
        official.far_config({k: v for k, v in known.items() if v is not None or k == "condition_cfg"}, 8, 8)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"encoder_qkv_multiscales": [[], [], [], [5]]}, "encoder_qkv_multiscales = "),
        ({"decoder_act_fns": ["silu"] * 4}, "decoder_act_fns = .*'relu'"),
        ({"encoder_layers_per_block": [1, 4, 8, 2]}, "no blocks in its first stage, got 1 and 0"),
        ({"encoder_block_types": ["EfficientViTBlock", "ResBlock", "ResBlock", "ResBlock"]}, "encoder_block_types ="),
        ({"shift_factor": 0.1}, "has the field 'shift_factor'"),
    ],
)
def test_an_official_autoencoder_config_that_is_not_ours_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        official.autoencoder_config({**layout("MyAutoencoderDC_8x_c32")["config"], **change})


def test_flex_rope_comes_from_the_slope_and_a_model_without_labels_has_no_table():
    config = official.far_config({**layout("FAR_B_uncond")["config"], "slope_scale": 0.2}, 8, 8)
    assert config.positions.slope == 0.2 and config.num_actions == 0 and config.context_patch_size is None


def test_what_stands_in_several_places_is_the_same_everywhere():
    """The command line knows names without loading torch; the importer has the vocabularies too."""
    from farworld.envs.teco import _LAYOUTS

    assert set(get_args(ckpt_cli.Variant)) == set(official.VARIANTS)
    assert set(get_args(official_worlds.DatasetName)) == set(DATASETS) == set(_LAYOUTS)
    published = {file for name in LAYOUTS for file in layout(name)["published"]}
    for name, facts in DATASETS.items():
        assert {facts.transformer, facts.autoencoder} <= published
        assert facts.vocabulary == _LAYOUTS[name].action_vocabulary
        assert facts.frames_per_second == _LAYOUTS[name].frames_per_second


def test_a_converted_world_has_the_official_weights_and_can_be_walked_through(dmlab, far_weights, autoencoder_weights):
    """Bit for bit, but for the table's row of the class that DMLab does not have: no key leads there."""
    config = dmlab.config
    assert (config.layout, config.frame_action, config.context_frames, config.num_steps) == (
        "anchored", "following", 144, 4
    )  # fmt: skip
    assert config.vocabulary.names == ("turn_left", "turn_right", "forward") and config.vocabulary.noop is None
    expected = official.far_state_dict(far_weights, official.recognise_far(far_weights, 8, 8))
    expected["action_embedding.weight"] = expected["action_embedding.weight"][[0, 1, 2, 4]]
    expected_autoencoder = official.autoencoder_state_dict(autoencoder_weights, config.autoencoder)
    for module, wanted in ((dmlab.model.transformer, expected), (dmlab.model.autoencoder, expected_autoencoder)):
        stored = module.state_dict()
        assert stored.keys() == wanted.keys()
        assert all(torch.equal(stored[name], tensor) for name, tensor in wanted.items())
    assert len(dmlab.contexts) == 4
    rollout = Rollout(dmlab.model)
    for start in dmlab.contexts:
        assert start.frames.shape == (START_FRAMES, 64, 64, 3) and start.frames.std() > 10
        rollout.prime(start.frames[None], start.actions[None])
        assert rollout.step(2).shape == (1, 64, 64, 3)


def test_the_card_says_where_the_weights_are_from(dmlab, files):
    card = (files / "dmlab" / "README.md").read_text()
    for part in ("far.pth", "dcae8.pth", HUB, "Licence: see the original repository", "farworld/Maze-v0", "following"):
        assert part in card
    assert set(dmlab.config.training["converted_from"]) == {"far.pth", "dcae8.pth"}


def test_the_command_makes_a_minecraft_world(monkeypatch, capsys, files, tmp_path):
    code, out, err = call(
        monkeypatch, capsys, "ckpt", "convert", files / "far.pth", "--autoencoder", files / "dcae16.pth",
        "--actions", "minecraft", tmp_path / "world", "--json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["autoencoder"] == "16x" and report["frame_size"] == "128x128" and report["variant"] is None
    assert report["actions"] == ["none", "forward", "yaw_left", "yaw_right"]
    world = load_world(tmp_path / "world")
    assert world.config.frame_action == "producing" and world.config.model.num_actions == 4
    assert all(start.frames.shape == (START_FRAMES, 128, 128, 3) for start in world.contexts)
    assert not any((start.actions == 0).any() for start in world.contexts)
    assert os.listdir(tmp_path) == ["world"]


def test_starts_are_real_frames_where_they_are_given(monkeypatch, capsys, files, tmp_path):
    episode = DATA / "dmlab_teco_episode.npz"
    code, out, err = call(
        monkeypatch, capsys, "ckpt", "convert", files / "far.pth", "--autoencoder", files / "dcae8.pth",
        "--actions", "dmlab", "--context", episode, tmp_path / "world",
    )  # fmt: skip
    assert code == 0 and "TECO dmlab: dmlab_teco_episode.npz" in out, err
    (start,) = load_world(tmp_path / "world").contexts
    with np.load(episode) as truth:
        assert np.array_equal(start.frames, truth["video"][:START_FRAMES])
        assert np.array_equal(start.actions, truth["actions"][: START_FRAMES - 1])


class Poison:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("option", ["transformer", "autoencoder"])
def test_a_poisoned_file_is_refused_in_one_line_and_not_run(monkeypatch, capsys, files, tmp_path, option, zipped):
    torch.save(
        {"x_embedder.weight": Poison(f"touch {tmp_path / 'ran'}")},
        tmp_path / "poison.pth", _use_new_zipfile_serialization=zipped,
    )  # fmt: skip
    paths = {"transformer": files / "far.pth", "autoencoder": files / "dcae8.pth", option: tmp_path / "poison.pth"}
    code, out, err = call(
        monkeypatch, capsys, "ckpt", "convert", paths["transformer"], "--autoencoder", paths["autoencoder"],
        "--actions", "dmlab", tmp_path / "world",
    )  # fmt: skip
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "poison.pth was refused and nothing in it was run" in err
    assert f"its pickle asks for {os.system.__module__}.system" in err
    assert os.listdir(tmp_path) == ["poison.pth"]


def bad_files(folder, files):
    """Files that are no flat dictionary of tensors, by what is wrong with them."""
    whole = (files / "far.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_bytes(b"404: not found")
    torch.save({"params_ema": {"x": torch.zeros(1)}, "step": 3}, folder / "nested.pth")
    torch.save([torch.zeros(1)], folder / "list.pth")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("truncated", "nothing in it was run.*damaged"),
        ("empty", "nothing in it was run.*damaged"),
        ("text", "nothing in it was run.*damaged"),
        ("nested", "one flat dictionary .* found a dictionary with params_ema, step.*save only the model's state dict"),
        ("list", "one flat dictionary"),
        ("absent", "no weights at .*absent.pth"),
    ],
)
def test_a_file_that_is_no_dictionary_of_tensors_is_named(files, tmp_path, name, complaint):
    bad_files(tmp_path, files)
    with pytest.raises((ValueError, FileNotFoundError), match=complaint) as caught:
        read_weights(tmp_path / f"{name}.pth")
    assert f"{name}.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_the_old_format_of_torch_save_is_read(files, tmp_path, far_weights):
    torch.save(far_weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = read_weights(tmp_path / "old.pth")
    assert all(torch.equal(tensor, old[name]) for name, tensor in far_weights.items())


@pytest.mark.parametrize(
    ("source", "autoencoder", "more", "complaint"),
    [
        ("dcae8", "dcae8", [], "dcae8.pth: these are no official FAR weights: the tensor 'x_embedder.weight'"),
        ("far", "far", [], "far.pth: these are no official DC-AE weights: the tensor 'decoder.conv_in.weight'"),
        ("far", "dcae16", [], "dcae16.pth must be a DC-AE of 8× compression to 8 channels, found 16× to 8"),
        ("far", "dcae8", ["--variant", "far_b_long"], "far.pth must be far_b_long, found another size (2 layers"),
        ("far", "dcae8", ["--context", "nowhere"], "no TECO dmlab data at nowhere"),
        ("label", "dcae8", [], "conditioned on 4 classes of actions (turn_left, turn_right, forward), found 5"),
        ("noaction", "dcae8", [], "conditioned on 4 classes of actions (turn_left, turn_right, forward), found 0"),
    ],
)  # fmt: skip
def test_files_that_do_not_make_a_world_are_refused_in_one_line(
    monkeypatch, capsys, files, tmp_path, source, autoencoder, more, complaint
):
    labels = load_file(REFERENCE / "far_short.weights.safetensors")
    torch.save(labels, tmp_path / "label.pth")
    torch.save({k: v for k, v in labels.items() if "label" not in k}, tmp_path / "noaction.pth")
    file = (tmp_path if source in ("label", "noaction") else files) / f"{source}.pth"
    monkeypatch.chdir(tmp_path)
    code, out, err = call(
        monkeypatch, capsys, "ckpt", "convert", file, "--autoencoder", files / f"{autoencoder}.pth",
        "--actions", "dmlab", tmp_path / "world", *more,
    )  # fmt: skip
    assert code == 2 and out == "" and err.count("\n") == 1 and complaint in err
    assert not (tmp_path / "world").exists()


def test_what_is_there_already_is_not_overwritten(dmlab, files, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    for there in (tmp_path / "photos", files / "dmlab", files / "far.pth"):
        with pytest.raises(ValueError, match=f"{there} is there already"):
            convert("dmlab", files / "far.pth", files / "dcae8.pth", there)
    assert (tmp_path / "photos" / "1.jpg").exists() and load_world(files / "dmlab").contexts


@pytest.fixture
def hub(monkeypatch, tmp_path, files):
    """A hub that has the small files under the published names, and an empty cache; what was downloaded."""
    downloads = []

    def download(repository, name):
        assert repository == HUB
        downloads.append(name)
        return str(files / {DATASETS["dmlab"].transformer: "far.pth", DATASETS["dmlab"].autoencoder: "dcae8.pth"}[name])

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.cached_assets_path", lambda *_, **__: tmp_path)
    monkeypatch.setattr(official_worlds, "_look_alike_starts", lambda facts: [])  # which is tested above
    return downloads


def test_a_published_world_is_downloaded_and_converted_once(hub, dmlab, tmp_path):
    world = load_world(f"{HUB}:dmlab")
    assert hub == [DATASETS["dmlab"].transformer, DATASETS["dmlab"].autoencoder]
    assert world.path == tmp_path / "dmlab-c09441dc-17035ae5-v1" == resolve(f"{HUB}:dmlab")
    assert len(hub) == 2 and os.listdir(tmp_path) == [world.path.name]
    first, second = world.model.state_dict(), dmlab.model.state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_a_conversion_that_dies_leaves_nothing_behind_and_the_next_one_succeeds(hub, monkeypatch, tmp_path):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(official_worlds, "_card", die)
        resolve(f"{HUB}:dmlab")
    assert os.listdir(tmp_path) == []
    assert load_world(f"{HUB}:dmlab").config.layout == "anchored"


def test_two_processes_that_convert_at_once_do_not_harm_each_other(hub, monkeypatch, tmp_path):
    real = official_worlds.convert

    def convert_after_another_process(*arguments, **options):
        monkeypatch.setattr(official_worlds, "convert", real)
        resolve(f"{HUB}:dmlab")
        return real(*arguments, **options)

    monkeypatch.setattr(official_worlds, "convert", convert_after_another_process)
    assert load_world(resolve(f"{HUB}:dmlab")).config.layout == "anchored"
    assert len(hub) == 4 and len(os.listdir(tmp_path)) == 1


def test_a_published_world_without_a_network_says_how_to_go_on(hub, monkeypatch, capsys):
    def no_network(*_):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    code, out, err = call(monkeypatch, capsys, "play", "--ckpt", f"{HUB}:minecraft", "--headless", "--frames", 1)
    assert code == 2 and out == "" and err.count("\n") == 1
    for part in (f"'{HUB}:minecraft'", *(Path(DATASETS["minecraft"].transformer).parts), "(no route to host)",
                 "farworld ckpt convert FAR.pth --autoencoder DCAE.pth --actions minecraft WORLD"):  # fmt: skip
        assert part in err


@pytest.mark.parametrize("part", ["", ":", ":doom", ":dmlab@main"])
def test_a_published_world_that_is_not_there_names_those_that_are(hub, part):
    with pytest.raises(ValueError, match=f"expected {HUB}:minecraft or {HUB}:dmlab"):
        resolve(f"{HUB}{part}")
    assert hub == []
