"""Run the cases of the official FAR implementation through farworld: `python -m tests.parity DIR`.

DIR holds one `X.json` and one `X.safetensors` a case, the `*.weights.safetensors` that they name, and an `index.json`
that lists the cases; `tests/data/reference` is such a folder. Seeds, sizes, windows and patch sizes are read from the
cases. A case's first letter is its type:

    a  FAR-Long, training forward           e  autoencoder
    b  FAR-Long, generation uncached        f  timesteps, noising, Euler steps
    c  FAR-Long, generation cached          g  pixels in, pixels out
    d  FAR, training forward, generation    h  a training step: loss and gradients
                                            p  embeddings, positions, packing, mask

Prints the largest absolute difference of each case, then one line of JSON. A case that cannot be run, a listed one
whose files are missing and a type without any case are failures. Exit code: 0 if all passed, 1 if not, 2 if DIR is no
folder of cases.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from farworld.actions import Action, ActionVocabulary
from farworld.models import flow, official
from farworld.models.attention import QKV, ClipAttention, Positions, rope_table, rotate
from farworld.models.autoencoder import Autoencoder, AutoencoderConfig
from farworld.models.far import CLEAN_SHORT_TERM, FAR, TIMESTEP_SCALE, FARConfig, TimestepEmbedding, patchify
from farworld.rollout import Rollout
from farworld.train.world import velocity_loss
from farworld.world_model import WorldConfig, WorldModel

TOLERANCE = 2e-5
AUTOENCODER_TOLERANCE = 5e-5
SIGMA_TOLERANCE = 1e-7
EXACT = 0.0
INDEX = "index.json"
WEIGHTS_SUFFIX = ".weights"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The largest absolute difference of one tensor."""

    name: str
    difference: float  # inf if NaN is involved
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is tolerated."""
        return self.difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one case."""

    name: str
    comparisons: tuple[Comparison, ...] = ()
    error: str | None = None  # why it could not be run to its end
    unread: tuple[str, ...] = ()  # tensors of the case that nothing was compared with

    @property
    def passed(self) -> bool:
        """Whether the case ran and all it compares is equal within tolerance."""
        return self.error is None and bool(self.comparisons) and all(c.passed for c in self.comparisons)

    @property
    def max_abs_diff(self) -> float | None:
        """The largest difference; None if nothing was compared."""
        return max((c.difference for c in self.comparisons), default=None)

    def __str__(self) -> str:
        difference = "-" if self.max_abs_diff is None else f"{self.max_abs_diff:.2e}"
        reasons = [f"{c.name} differs by {c.difference:.2e}, tolerated {c.tolerance:.0e}"
                   for c in self.comparisons if not c.passed]  # fmt: skip
        if self.error is not None:
            reasons.append(self.error)
        line = f"{'ok  ' if self.passed else 'FAIL'}  {self.name:<46} {difference:>9}"
        if reasons:
            line += f"  {reasons[0]}" + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
        return line + (f"  (not compared: {', '.join(self.unread)})" if self.unread else "")


@dataclass(slots=True)
class Case:
    """One case: what its JSON says, its tensors, and the weights beside it."""

    folder: Path
    name: str
    info: dict
    tensors: dict[str, Tensor]
    read: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"{self.name}.safetensors has no tensor {name!r}; it has {', '.join(self.tensors)}")
        self.read.add(name)
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """A tensor that not every case has."""
        return self[name] if name in self.tensors else None

    def matching(self, pattern: str) -> dict[re.Match, Tensor]:
        """The tensors whose whole name matches; at least one."""
        found = {match: self[name] for name in self.tensors if (match := re.fullmatch(pattern, name))}
        if not found:
            raise ValueError(f"{self.name}.safetensors has no tensor named like {pattern!r}")
        return found

    def weights(self) -> list[dict[str, Tensor]]:
        """The official state dicts that the case names."""
        files = self.info["weights_files"] if "weights_files" in self.info else [self.info["weights_file"]]
        return [_load_tensors(self.folder / file) for file in files]


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; errors name it."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.name} is missing") from error


def load_case(folder: Path, name: str) -> Case:
    """Read a case's files; errors name the file."""
    path = folder / f"{name}.json"
    try:
        info = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.name} is missing") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    if not isinstance(info, dict):
        raise ValueError(f"{path.name} is damaged: expected an object, got {type(info).__name__}")
    return Case(folder, name, info, _load_tensors(folder / f"{name}.safetensors"))


def compare(name: str, ours: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> Comparison:
    """Largest absolute difference; equal infinities differ by nothing, NaN by infinitely much."""
    if ours.shape != expected.shape:
        raise ValueError(f"{name}: expected shape {tuple(expected.shape)}, got {tuple(ours.shape)}")
    ours, expected = ours.detach().double(), expected.double()
    difference = torch.where(ours == expected, 0.0, (ours - expected).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    return Comparison(name, float(difference.max()) if difference.numel() else 0.0, tolerance)


def load_far(weights: dict[str, Tensor], config: dict, height: int, width: int, *, coarse_output: bool = False) -> FAR:
    """The official transformer of a case, for latents of height × width."""
    if config.get("condition_cfg") is None:  # cases without conditions share the file of those with them
        weights = {name: value for name, value in weights.items() if not name.endswith("embedding_table.weight")}
    far_config = official.far_config(config, height, width, coarse_output=coarse_output)
    model = FAR(far_config)
    model.load_state_dict(official.far_state_dict(weights, far_config))
    return model


def load_autoencoder(weights: dict[str, Tensor], config: dict, scaling_factor: float) -> Autoencoder:
    """The official autoencoder of a case, for evaluation."""
    autoencoder_config = official.autoencoder_config(config)
    autoencoder = Autoencoder(autoencoder_config)
    autoencoder.load_state_dict(official.autoencoder_state_dict(weights, autoencoder_config, scaling_factor))
    return autoencoder.eval()


def actions_of(case: Case, config: FARConfig, num_frames: int) -> Tensor | None:
    """(B, T), int64: the action of each frame; a label is an action that stays the same; None if unconditional."""
    action, label = case.get("action"), case.get("label")
    if config.num_actions == 0:
        return None
    if action is not None:
        return action
    if label is None:
        raise ValueError(f"{case.name}.safetensors needs a tensor 'action' or 'label'")
    return label[:, None].expand(-1, num_frames)


def guidance_of(case: Case, config: FARConfig) -> float:
    """The case's guidance in our terms: −1 is the null action alone, for labels and up to 1 it is off."""
    official_scale = float(case.info["guidance_scale"])
    takes_null = case.get("action") is not None and config.num_actions > 0
    return 0.0 if official_scale == -1 and takes_null else max(1.0, official_scale)


def num_fine_frames(config: FARConfig, num_frames: int) -> int:
    """How many of a clip's last frames are fine in the anchored layout."""
    return min(num_frames, config.short_term_frames) if config.context_patch_size else num_frames


def forward_clip(model: FAR, clip: Tensor, timestep: Tensor, action: Tensor | None) -> Tensor:
    """Velocities of a whole clip in the anchored layout, coarse frames first if the model has them.

    Args:
        model: FAR or FAR-Long.
        clip: (B, T, C, H, W).
        timestep: (B, T), on the embedding's scale; coarse frames must be clean.
        action: (B, T) or None.
    """
    split = clip.shape[1] - num_fine_frames(model.config, clip.shape[1])
    if (timestep[:, :split] != CLEAN_SHORT_TERM).any():
        raise ValueError("frames before the short-term window have to be clean (timestep -1)")
    return model(clip[:, split:], timestep[:, split:], action, clip[:, :split] if split else None)


def generate_uncached(
    model: FAR, context: Tensor, noise: Tensor, action: Tensor | None, *, num_steps: int, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """Generate with whole clips, as the official pipeline does without its cache.

    Returns:
        Latents (B, T, C, H, W), the context first, and the velocities (F, steps, B or 2B, 1, C, H, W) before guidance,
        the half of the null action first.
    """
    null = None if action is None else torch.full_like(action, model.config.null_action)
    branches = [action] if guidance_scale == 1.0 else [null] if guidance_scale == 0.0 else [null, action]
    latents, velocities = context, []
    for index in range(noise.shape[1]):
        x = noise[:, index]
        for now, then in pairwise(flow.official_timesteps(num_steps)):
            clip = torch.cat([latents, x[:, None]], dim=1)
            length = clip.shape[1]
            timestep = torch.full(clip.shape[:2], CLEAN_SHORT_TERM)
            timestep[:, -1] = now * TIMESTEP_SCALE
            parts = [
                forward_clip(model, clip, timestep, None if branch is None else branch[:, :length])[:, -1]
                for branch in branches
            ]
            velocities.append(torch.cat(parts))
            velocity = parts[0] + guidance_scale * (parts[-1] - parts[0]) if len(parts) == 2 else parts[0]
            x = flow.euler_step(x, velocity, now, then)
        latents = torch.cat([latents, x[:, None]], dim=1)
    return latents, rearrange(torch.stack(velocities), "(f s) b c h w -> f s b 1 c h w", s=num_steps)


def generate_cached(
    model: FAR,
    autoencoder: AutoencoderConfig,
    context: Tensor,
    noise: Tensor,
    action: Tensor | None,
    *,
    num_steps: int,
    guidance_scale: float,
) -> Tensor:
    """Generate with the rollout in the anchored layout; latents (B, T, C, H, W), the context first."""
    config, num_context = model.config, context.shape[1]
    num_frames = num_context + noise.shape[1]
    vocabulary = ActionVocabulary(tuple(Action(name=str(index)) for index in range(max(1, config.num_actions))))
    world = WorldModel(
        WorldConfig(
            name="parity",
            model=config,
            autoencoder=autoencoder,
            vocabulary=vocabulary,
            frame_height=config.latent_height * autoencoder.compression,
            frame_width=config.latent_width * autoencoder.compression,
            frames_per_second=1.0,
        )
    )
    world.transformer = model
    rollout = Rollout(
        world.eval(),
        batch_size=len(noise),
        context_frames=max(num_frames, config.short_term_frames),  # nothing is forgotten
        guidance_scale=guidance_scale,
        layout="anchored",
        timesteps=flow.official_timesteps(num_steps),
    )
    if action is None:
        action = torch.zeros(noise.shape[0], num_frames, dtype=torch.int64)
    rollout.prime_latents(context, action[:, :num_context])
    generated = [
        rollout.step_latents(action[:, num_context + index], noise=noise[:, index]) for index in range(noise.shape[1])
    ]
    return torch.cat([context, torch.stack(generated, dim=1)], dim=1)


def placeholder_autoencoder(latent_channels: int) -> AutoencoderConfig:
    """A world has an autoencoder, also where a case has only latents."""
    return AutoencoderConfig(
        latent_channels=latent_channels, widths=(4 * latent_channels,), encoder_blocks=(0,), decoder_blocks=(0,)
    )


def check_training_forward(case: Case) -> Iterator[Comparison]:
    """Types a and d: velocities of all frames of a clip."""
    clip, (weights,) = case["hidden_states"], case.weights()
    config = case.info["config"]
    model = load_far(weights, config, *clip.shape[-2:], coarse_output="context_patch_size" in config).train()
    action = actions_of(case, model.config, clip.shape[1])
    yield compare("output", forward_clip(model, clip, case["timestep"], action), case["output"])


def check_generation(case: Case, *, cached: bool) -> Iterator[Comparison]:
    """Types b, c and d: latents generated from a context and given noise."""
    noise, context, (weights,) = case["noise"], case.get("context_latents"), case.weights()
    if context is None:
        context = noise[:, :0]
    model = load_far(weights, case.info["config"], *noise.shape[-2:]).eval()
    action = actions_of(case, model.config, context.shape[1] + noise.shape[1])
    num_steps, guidance_scale = case.info["num_inference_steps"], guidance_of(case, model.config)
    if cached:
        autoencoder = placeholder_autoencoder(model.config.latent_channels)
        latents = generate_cached(
            model, autoencoder, context, noise, action, num_steps=num_steps, guidance_scale=guidance_scale
        )
    else:
        latents, velocity = generate_uncached(
            model, context, noise, action, num_steps=num_steps, guidance_scale=guidance_scale
        )
        if (expected := case.get("velocity")) is not None:
            yield compare("velocity", velocity, expected)
    yield compare("latents_out", latents, case["latents_out"])


def check_short(case: Case) -> Iterator[Comparison]:
    """Type d: FAR without a long-term stream."""
    if "hidden_states" in case.tensors:
        return check_training_forward(case)
    return check_generation(case, cached=case.info["use_kv_cache"])


def check_autoencoder(case: Case) -> Iterator[Comparison]:
    """Type e: latents of images, and images of latents."""
    (weights,), config = case.weights(), case.info["config"]
    autoencoder = load_autoencoder(weights, config, config["scaling_factor"])
    yield compare("latents", autoencoder.encoder(case["images"]), case["latents"], AUTOENCODER_TOLERANCE)
    for latents, decoded in (("latents", "reconstructions"), ("random_latents", "random_latents_decoded")):
        yield compare(decoded, autoencoder.decoder(case[latents]), case[decoded], AUTOENCODER_TOLERANCE)


def check_scheduler(case: Case) -> Iterator[Comparison]:
    """Type f: timesteps of training and of sampling, noising, Euler steps."""
    # Timesteps are compared as sigmas, a thousandth of them: near 1000 a float32 is no finer than 6e-5.
    training = case["training_timesteps"]
    draws = (torch.arange(len(training)) + 0.5) / len(training)
    sigmas = flow.timestep_of_draw(draws).double() / TIMESTEP_SCALE
    yield compare("training_timesteps", sigmas, training.double() / TIMESTEP_SCALE, SIGMA_TOLERANCE)
    yield compare("training_sigmas", sigmas, case["training_sigmas"], SIGMA_TOLERANCE)
    for match, timesteps in case.matching(r"timesteps_(\d+)").items():
        sigmas = torch.tensor(flow.official_timesteps(int(match[1])), dtype=torch.float64)
        yield compare(match[0], sigmas[:-1], timesteps.double() / TIMESTEP_SCALE, SIGMA_TOLERANCE)
        yield compare(f"sigmas_{match[1]}", sigmas, case[f"sigmas_{match[1]}"], SIGMA_TOLERANCE)
    u = case["u"]
    timestep = flow.timestep_of_draw(u)
    yield compare("index", TIMESTEP_SCALE - timestep, case["index"], EXACT)
    expected = case["timestep_for_u"].double() / TIMESTEP_SCALE
    yield compare("timestep_for_u", timestep.double() / TIMESTEP_SCALE, expected, SIGMA_TOLERANCE)
    sample, noise = (case[f"scale_noise_{part}"].reshape(len(u), -1, 1, 1) for part in ("sample", "noise"))
    noised = flow.add_noise(sample, noise, timestep / TIMESTEP_SCALE)
    yield compare("scale_noise_result", noised.reshape(case["scale_noise_result"].shape), case["scale_noise_result"])
    x, steps = case["euler_x_init"], case.matching(r"euler_v(\d+)")
    for index, (now, then) in enumerate(pairwise(flow.official_timesteps(len(steps)))):
        x = flow.euler_step(x, case[f"euler_v{index}"], now, then)
        yield compare(f"euler_x{index}", x, case[f"euler_x{index}"])


def check_pixels(case: Case) -> Iterator[Comparison]:
    """Type g: pixels of a context in, pixels of context and generated frames out."""
    info, video, noise = case.info, case["context_video"], case["noise"]
    parts = {any(name.startswith("encoder.") for name in weights): weights for weights in case.weights()}
    autoencoder = load_autoencoder(parts[True], info["config"]["vae"], info["scaling_factor"])
    model = load_far(parts[False], info["config"]["far_long"], *noise.shape[-2:]).eval()
    scale = autoencoder.latent_scale[:, None, None]
    context = (autoencoder.encoder(2 * video.flatten(0, 1) - 1) * scale).unflatten(0, video.shape[:2])
    action = actions_of(case, model.config, context.shape[1] + noise.shape[1])
    num_steps, guidance_scale = info["num_inference_steps"], guidance_of(case, model.config)
    if info["use_kv_cache"]:
        latents = generate_cached(
            model, autoencoder.config, context, noise, action, num_steps=num_steps, guidance_scale=guidance_scale
        )
    else:
        latents, _ = generate_uncached(
            model, context, noise, action, num_steps=num_steps, guidance_scale=guidance_scale
        )
    pixels = autoencoder.decoder(latents.flatten(0, 1) / scale).unflatten(0, latents.shape[:2])
    yield compare("video_out", (pixels / 2 + 0.5).clamp(0, 1), case["video_out"])


def check_training_step(case: Case) -> Iterator[Comparison]:
    """Type h: noising, loss and the gradients of one step."""
    info, (weights,) = case.info, case.weights()
    latents, noise = case["latent"] * info["scaling_factor"], case["noise"]
    coarse_output = "context_patch_size" in info["config"]
    model = load_far(weights, info["config"], *latents.shape[-2:], coarse_output=coarse_output).train()
    action = actions_of(case, model.config, latents.shape[1])

    drawn = flow.timestep_of_draw(case["u"])
    is_clean = torch.ones(drawn.shape, dtype=torch.bool)
    is_clean[:, -case["clean_draw"].shape[1] :] = case["clean_draw"] < info["clean_context_ratio"]
    noised = flow.add_noise(latents, noise, drawn / TIMESTEP_SCALE)
    noisy = torch.where(is_clean[..., None, None, None], latents, noised)
    timestep = torch.where(is_clean, CLEAN_SHORT_TERM, drawn)
    yield compare("noisy_latents", noisy, case["noisy_latents"])
    yield compare("timestep", timestep / TIMESTEP_SCALE, case["timestep"] / TIMESTEP_SCALE, SIGMA_TOLERANCE)

    num_judged = min(latents.shape[1], model.config.short_term_frames)
    with torch.enable_grad():
        velocity = forward_clip(model, noisy, timestep, action)
        target = flow.velocity_target(latents, noise)
        loss = velocity_loss(*(part[:, -num_judged:] for part in (velocity, target, is_clean)))
        loss.backward()
    yield compare("loss", loss.reshape(1), case["loss"])

    ours = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    condition = (info["config"]["condition_cfg"] or {}).get("type", "action")
    gradients = official.official_gradients(ours, model.config, condition=condition)
    for match, expected in case.matching(r"grad\.(.+)").items():
        yield compare(match[0], _named(gradients, match[1]), expected)
    norms = info["gradient_norms"]
    if unknown := set(gradients) - set(norms):
        raise ValueError(f"{case.name}.json has no gradient_norms of {', '.join(sorted(unknown))}")
    for name, expected in norms.items():
        gradient = _named(gradients, name).double()
        yield compare(f"L2 norm of grad.{name}", gradient.norm(), torch.tensor(expected["l2"], dtype=torch.float64))
        # A sum adds up what tens of thousands of numbers round alike, so that a large one is judged by its size.
        tolerance = TOLERANCE * max(1.0, abs(expected["sum"]))
        total = torch.tensor(expected["sum"], dtype=torch.float64)
        yield compare(f"sum of grad.{name}", gradient.sum(), total, tolerance)


def _named(gradients: dict[str, Tensor], name: str) -> Tensor:
    if name not in gradients:
        raise ValueError(f"there is no gradient of {name}")
    return gradients[name]


def check_primitives(case: Case) -> Iterator[Comparison]:
    """Type p: the parts, each on its own."""
    yield from _check_timestep_embedding(case)
    yield from _check_positions(case)
    for match, packed in case.matching(r"packed_p(\d+)").items():
        yield compare(match[0], patchify(case["pack_input"], int(match[1])).flatten(1, 2), packed, EXACT)
    for match, mask in case.matching(r"mask_slope(\d+)p(\d+)").items():
        yield _check_mask(match[0], float(f"{match[1]}.{match[2]}"), case.info["tensors"][match[0]]["meaning"], mask)


def _check_timestep_embedding(case: Case) -> Iterator[Comparison]:
    (weights,) = case.weights()
    embedding = TimestepEmbedding(case["timestep_embedding"].shape[-1])
    prefix = "timestep_embedder."
    embedding.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    features: list[Tensor] = []
    embedding.linear_1.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    embedded = embedding(case["timesteps"])
    yield compare("time_proj", features[0], case["time_proj"])
    yield compare("timestep_embedding", embedded, case["timestep_embedding"])


def _check_positions(case: Case) -> Iterator[Comparison]:
    """Rotation tables of both streams, at the positions that the case lists; and a rotation."""
    config, head_size = case.info["config"], case["rope_x"].shape[-1]
    fine_ids, coarse_ids = case["short_ids"].long(), case["long_ids"].long()
    num_frames, rows, columns = (int(size) + 1 for size in torch.cat([coarse_ids, fine_ids]).amax(dim=0))
    stride = config["context_patch_size"] // config["patch_size"]
    first_fine = int(fine_ids[:, 0].min())
    fine = rope_table(range(first_fine, num_frames), rows, columns, 1, head_size)
    coarse = rope_table(range(first_fine), rows // stride, columns // stride, stride, head_size)
    # Our tables come without ids: at each listed position must stand what a table of all positions has there.
    everywhere = rope_table(range(num_frames), rows, columns, 1, head_size)
    for name, ids, table in (("short_ids", fine_ids, fine), ("long_ids", coarse_ids, coarse)):
        place = (ids[:, 0] * rows + ids[:, 1]) * columns + ids[:, 2]
        for ours, listed in zip(table, everywhere, strict=True):
            yield compare(name, ours, listed[place], EXACT)
    for table, suffix in ((fine, "short_first2frames"), (coarse, "long")):
        cos, sin = (case[f"rope_{name}_{suffix}"] for name in ("cos", "sin"))
        yield compare(f"rope_cos_{suffix}", table[0][: len(cos)], cos)
        # Theirs has no signs.
        unsigned = table[1][: len(sin), 1::2].repeat_interleave(2, dim=-1)
        yield compare(f"rope_sin_{suffix}", unsigned, sin)
    num_tokens = case["rope_x"].shape[-2]
    rotated = rotate(case["rope_x"], (fine[0][:num_tokens], fine[1][:num_tokens]))
    yield compare("rope_y", rotated, case["rope_y"])


def _check_mask(name: str, slope: float, layout: str, expected: Tensor) -> Comparison:
    """The additive mask, as attention applies it: log probabilities where all logits are 0."""
    found = re.search(r"(\d+) long-term frames of (\d+) tokens then (\d+) short-term frames of (\d+) tokens", layout)
    if found is None:
        raise ValueError(f"{name}: cannot tell the layout of its tokens from {layout!r}")
    num_coarse, coarse_tokens, num_fine, fine_tokens = map(int, found.groups())
    attend = ClipAttention(
        window=num_fine, fine_frames=range(num_coarse, num_coarse + num_fine), coarse_frames=range(num_coarse),
        fine_tokens=fine_tokens, coarse_tokens=coarse_tokens,
        positions=Positions.flex_rope(slope), num_heads=1, dtype=torch.float32,
    )  # fmt: skip
    one_hot = torch.eye(expected.shape[-1])[None, None]

    def stream(tokens: slice) -> QKV:
        blank = torch.zeros_like(one_hot[:, :, tokens])
        return QKV(blank, blank, one_hot[:, :, tokens])

    split = num_coarse * coarse_tokens
    fine, coarse = attend(0, stream(slice(split, None)), stream(slice(split)))
    assert coarse is not None
    logits = torch.cat([coarse, fine], dim=2)[0].log()
    return compare(name, logits - logits.diagonal(dim1=-2, dim2=-1)[..., None], expected)


CHECKS: dict[str, Callable[[Case], Iterator[Comparison]]] = {
    "a": check_training_forward,
    "b": functools.partial(check_generation, cached=False),
    "c": functools.partial(check_generation, cached=True),
    "d": check_short,
    "e": check_autoencoder,
    "f": check_scheduler,
    "g": check_pixels,
    "h": check_training_step,
    "p": check_primitives,
}


@torch.no_grad()
def run_case(folder: Path, name: str) -> Result:
    """Run one case; what goes wrong on the way is its result, not an exception."""
    comparisons: list[Comparison] = []
    check = CHECKS.get(name.partition("_")[0])
    if check is None:
        return Result(name, error=f"unknown type of case; known are {', '.join(CHECKS)}")
    try:
        case = load_case(folder, name)
        comparisons.extend(check(case))
    except Exception as error:  # whatever a damaged file leads to, the other cases are still run
        return Result(name, tuple(comparisons), " ".join(f"{type(error).__name__}: {error}".split()))
    return Result(name, tuple(comparisons), unread=tuple(sorted(set(case.tensors) - case.read)))


def case_names(folder: Path) -> list[str]:
    """The cases that the index lists, then others that lie in the folder.

    Raises:
        ValueError: not a folder, no cases in it, or an index that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of reference cases, got {folder}")
    index, listed = folder / INDEX, []
    if index.exists():
        try:
            listed = json.loads(index.read_bytes())["cases"]
            if not all(isinstance(name, str) for name in listed):
                raise TypeError("'cases' must be a list of names")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read the list of cases in {index}: {error}") from error
    # A case of which one file is left is a case with a missing file.
    files = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors") and path != index]
    lying = sorted({path.stem for path in files if not path.stem.endswith(WEIGHTS_SUFFIX)})
    if not listed and not lying:
        raise ValueError(f"no reference cases in {folder}; expected {INDEX} and X.json with X.safetensors")
    return list(dict.fromkeys([*listed, *lying]))


def run_folder(folder: Path, report: Callable[[Result], None] = lambda result: None) -> list[Result]:
    """Run all cases of a folder; a type without any case is a failed result of its own.

    Raises:
        ValueError: see `case_names`.
    """
    results = []
    names = case_names(folder)
    absent = [kind for kind in CHECKS if not any(name.partition("_")[0] == kind for name in names)]
    for name in names:
        results.append(run_case(folder, name))
        report(results[-1])
    for kind in absent:
        results.append(Result(kind, error="no case of this type in the folder"))
        report(results[-1])
    return results


def summary(results: list[Result]) -> dict:
    """What the last line says; max_abs_diff is null if nothing was compared or something was not a number."""
    worst = max((r.max_abs_diff for r in results if r.max_abs_diff is not None), default=math.inf)
    return {
        "cases": len(results),
        "passed": sum(result.passed for result in results),
        "max_abs_diff": worst if math.isfinite(worst) else None,
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description="Run the cases of a reference folder.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder, for example tests/data/reference")
    folder = parser.parse_args(arguments).folder
    try:
        results = run_folder(folder, report=lambda result: print(result, flush=True))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary(results)), flush=True)
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
