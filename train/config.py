"""Training settings and their presets: one flat dataclass, so that `--set field=value` reaches everything."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from farworld.models.autoencoder import AutoencoderConfig
from farworld.models.far import FARConfig
from farworld.train.discriminator import smallest_frame
from farworld.train.lpips import SMALLEST as SMALLEST_FOR_LPIPS

AT_LEAST_ONE = (
    "autoencoder_steps", "world_steps", "autoencoder_batch_size", "world_batch_size", "checkpoint_every",
    "sample_every", "log_every", "accumulate", "num_layers", "num_heads", "num_steps", "num_contexts", "start_frames",
    "autoencoder_gan_width", "autoencoder_gan_layers", "fetched_megabytes",
)  # fmt: skip
# What the weights of each stage's checkpoints depend on.
ARCHITECTURE = {
    "autoencoder": (
        "frame_size", "latent_channels", "autoencoder_widths", "encoder_blocks", "decoder_blocks",
        "autoencoder_attention_stages",
    ),
    "world": (
        "num_layers", "num_heads", "head_size", "patch_size", "context_patch_size", "short_term_frames", "copy_gate",
        "causal", "shortcut_steps",
    ),
}  # fmt: skip
CAN_BE_NONE = ("context_patch_size", "shortcut_steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that a run can be told. Sizes in latent pixels or frames."""

    preset: str
    seed: int = 0
    frame_size: int  # pixels, height and width

    # Autoencoder (DC-AE)
    latent_channels: int
    autoencoder_widths: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    autoencoder_attention_stages: int = 0  # how many of the last stages are made of EfficientViT blocks
    autoencoder_steps: int
    autoencoder_batch_size: int = 16  # frames
    autoencoder_learning_rate: float = 1e-3
    autoencoder_betas: tuple[float, float] = (0.9, 0.99)  # of Adam, the discriminator's as well
    autoencoder_ema_decay: float = 0.0  # 0: no average, the last weights are the result
    autoencoder_square_weight: float = 1.0  # of the mean squared error; that of L1 is 1
    autoencoder_lpips_weight: float = 0.0  # 0: without LPIPS
    autoencoder_gan_weight: float = 0.0  # 0: without a discriminator
    autoencoder_gan_start: float = 0.5  # share of the steps before the discriminator comes and the encoder is frozen
    autoencoder_gan_width: int = 64  # channels of the discriminator's first layer
    autoencoder_gan_layers: int = 3  # of the discriminator, that halve the resolution
    autoencoder_gan_learning_rate: float = 4e-4
    latent_noise: float = 0.05  # std added to latents, so that the decoder forgives the world model
    latent_penalty: float = 1e-3  # weight of the mean squared latent; keeps the noise from being outgrown

    # World model (FAR-Long)
    num_layers: int
    num_heads: int
    head_size: int = 64
    patch_size: int
    context_patch_size: int | None  # None: no long-term stream (FAR instead of FAR-Long), every frame is fine
    short_term_frames: int
    causal: bool = True  # False: Video-DiT, the paper's baseline; with context_patch_size=None and copy_gate=False
    copy_gate: bool = True  # take over what stands still from the frame before, see farworld.models.far
    shortcut_steps: int | None = None  # of the finest step size that the model is told, a power of two; None: no size
    world_steps: int
    world_batch_size: int = 4  # clips
    fine_frames: int = 16  # frames of a clip that are trained on, the last ones
    early_clip_frames: int = 32  # longest clip before the decay; short clips teach motion for a fraction of the time
    max_clip_frames: int = 300  # longest clip in the decay; lengths are drawn log-uniformly from fine_frames up
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clean_context_ratio: float = 0.5  # probability that a frame is clean context instead of a target
    own_context_ratio: float = 0.5  # in the decay: share of clips whose context is partly the model's own predictions
    bootstrap_ratio: float = 0.25  # with shortcut_steps: share of clips that learn large steps from two halves
    context_noise_max: float = 0.0  # flow time; context frames are noised up to it, and the model is told by how much
    idle_ratio: float = 0.0  # share of clips that repeat one frame under the noop; for worlds that then hold still
    action_dropout: float = 0.1  # probability of the null action, per frame
    timestep_mean: float = 0.0  # of the logit-normal timesteps
    timestep_std: float = 1.0
    pure_noise_ratio: float = 0.4  # probability that a target starts from pure noise, as play does

    # Both
    warmup_steps: int = 100
    decay_fraction: float = 0.3  # last part of the steps, in which the learning rate falls to zero
    gradient_clip: float = 1.0  # norm
    accumulate: int = 1  # parts that a process goes through for one step, to fit its memory
    recompute: bool = False  # run blocks again in the backward pass: less memory, more time
    fsdp: bool = False  # ranks share the world model's weights, gradients, moments and average; each has a part
    compile: bool = False  # the world model's blocks; minutes to start, then less time and memory on a GPU
    attention: str = "auto"  # of whole clips: sdpa with dense masks, flex (CUDA), or auto: flex where it runs
    precision: str = "auto"  # float32, bfloat16, or auto: bfloat16 where the hardware multiplies it natively
    fetched_megabytes: int = 4096  # of a dataset elsewhere, kept on the disk for the autoencoder to draw frames from
    held_out_fraction: float = 0.02  # episodes kept back for samples and the model card
    checkpoint_every: int = 200  # steps
    sample_every: int = 500  # steps
    log_every: int = 10  # steps
    wandb_project: str = ""  # also log to this project of Weights & Biases

    # Exported world
    num_steps: int = 1  # denoising steps a frame in play
    context_frames: int = 300  # remembered in play
    context_noise: float = 0.0  # flow time, of context frames in play; at most context_noise_max
    num_contexts: int = 4  # start contexts
    start_frames: int = 8  # frames of a start context

    def __post_init__(self) -> None:
        for name in ("autoencoder_widths", "encoder_blocks", "decoder_blocks", "autoencoder_betas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision must be auto, float32 or bfloat16, got {self.precision!r}")
        if self.compile and self.recompute:  # a block that runs again may take another of the compiled graphs
            raise ValueError(
                "recompute=True and compile=True exclude each other; set one of them, or fsdp or accumulate"
            )
        if self.attention not in ("auto", "sdpa", "flex"):
            raise ValueError(f"attention must be auto, sdpa or flex, got {self.attention!r}")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.autoencoder_batch_size % 4:
            raise ValueError(f"autoencoder_batch_size must be a multiple of 4, got {self.autoencoder_batch_size}")
        if not 0 <= self.clean_context_ratio < 1:
            raise ValueError(f"clean_context_ratio must be in [0, 1), got {self.clean_context_ratio}")
        for name in ("own_context_ratio", "idle_ratio", "bootstrap_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.context_noise <= self.context_noise_max < 1:
            raise ValueError(
                "expected 0 <= context_noise <= context_noise_max < 1, since play asks for what was learnt, got "
                f"context_noise={self.context_noise} and context_noise_max={self.context_noise_max}"
            )
        if not 2 <= self.fine_frames <= self.max_clip_frames:
            raise ValueError(
                f"fine_frames must be at least 2 and at most max_clip_frames {self.max_clip_frames}, "
                f"got {self.fine_frames}"
            )
        if self.context_frames < self.short_term_frames:
            raise ValueError(
                f"context_frames must be at least short_term_frames {self.short_term_frames}, got {self.context_frames}"
            )
        if self.frame_size % (compression := self.autoencoder().compression):
            raise ValueError(
                f"frame_size must be a multiple of {compression}, the autoencoder's compression, got {self.frame_size}"
            )
        self._check_autoencoder_losses()
        if self.early_clip_frames < self.fine_frames:
            raise ValueError(
                f"early_clip_frames must be at least fine_frames {self.fine_frames}, got {self.early_clip_frames}"
            )
        self.far(num_actions=1)  # checks the transformer's sizes

    def _check_autoencoder_losses(self) -> None:
        for name in ("autoencoder_square_weight", "autoencoder_lpips_weight", "autoencoder_gan_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if len(self.autoencoder_betas) != 2 or not all(0 <= beta < 1 for beta in self.autoencoder_betas):
            raise ValueError(f"autoencoder_betas must be two numbers in [0, 1), got {self.autoencoder_betas}")
        if not 0 <= self.autoencoder_ema_decay < 1:
            raise ValueError(f"autoencoder_ema_decay must be in [0, 1), got {self.autoencoder_ema_decay}")
        if not 0 <= self.autoencoder_gan_start <= 1:
            raise ValueError(
                f"autoencoder_gan_start is a share of the steps in [0, 1], got {self.autoencoder_gan_start}"
            )
        if self.autoencoder_lpips_weight and self.frame_size < SMALLEST_FOR_LPIPS:
            raise ValueError(
                f"LPIPS needs frames of at least {SMALLEST_FOR_LPIPS} pixels, got {self.frame_size}; "
                "train without it: --set autoencoder_lpips_weight=0"
            )
        smallest = smallest_frame(self.autoencoder_gan_layers)
        if self.autoencoder_gan_weight and self.frame_size < smallest:
            raise ValueError(
                f"a discriminator of {self.autoencoder_gan_layers} layers needs frames of at least {smallest} pixels, "
                f"got {self.frame_size}; set a smaller autoencoder_gan_layers"
            )

    def gan_start(self, total_steps: int) -> int:
        """The autoencoder's step at which the discriminator comes; with none, a step that is never reached."""
        return round(total_steps * self.autoencoder_gan_start) if self.autoencoder_gan_weight else total_steps

    def decay_start(self, total_steps: int) -> int:
        """The step at which a stage's learning rate begins to fall."""
        return total_steps - max(1, round(total_steps * self.decay_fraction))

    def autoencoder(self) -> AutoencoderConfig:
        """The autoencoder's sizes."""
        return AutoencoderConfig(
            latent_channels=self.latent_channels,
            widths=self.autoencoder_widths,
            encoder_blocks=self.encoder_blocks,
            decoder_blocks=self.decoder_blocks,
            attention_stages=self.autoencoder_attention_stages,
        )

    def far(self, num_actions: int) -> FARConfig:
        """The transformer's sizes."""
        latent_size = self.frame_size // self.autoencoder().compression
        return FARConfig(
            latent_channels=self.latent_channels,
            latent_height=latent_size,
            latent_width=latent_size,
            num_actions=num_actions,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_size=self.head_size,
            patch_size=self.patch_size,
            context_patch_size=self.context_patch_size,
            short_term_frames=self.short_term_frames,
            copy_gate=self.copy_gate,
            causal=self.causal,
            shortcut_steps=self.shortcut_steps,
        )


_MAZE = TrainConfig(
    preset="maze-s",
    frame_size=64,
    latent_channels=16,
    autoencoder_widths=(48, 96, 192),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 2, 2),
    autoencoder_steps=4000,
    autoencoder_lpips_weight=0.3,
    num_layers=7,
    num_heads=6,
    head_size=32,
    patch_size=2,
    context_patch_size=4,
    short_term_frames=8,
    world_steps=6000,
    idle_ratio=0.1,
)
_VOXEL = TrainConfig(
    preset="voxel-s",
    frame_size=128,
    latent_channels=64,
    autoencoder_widths=(32, 64, 128, 256),
    encoder_blocks=(1, 1, 1, 1),
    decoder_blocks=(1, 2, 2, 2),
    autoencoder_steps=4000,
    autoencoder_lpips_weight=0.3,
    num_layers=6,
    num_heads=4,
    patch_size=1,
    context_patch_size=4,
    short_term_frames=4,
    world_steps=4000,
    idle_ratio=0.1,
)
PRESETS: dict[str, TrainConfig] = {
    "maze-xs": dataclasses.replace(
        _MAZE, preset="maze-xs", autoencoder_widths=(32, 64, 128), decoder_blocks=(1, 1, 1), autoencoder_steps=1000,
        num_layers=4, num_heads=4, world_steps=1000, max_clip_frames=64, context_frames=64,
    ),
    "maze-s": _MAZE,
    "voxel-xs": dataclasses.replace(
        _VOXEL, preset="voxel-xs", autoencoder_widths=(16, 32, 64, 128), decoder_blocks=(1, 1, 1, 1),
        autoencoder_batch_size=8, autoencoder_steps=1000, num_layers=4, num_heads=2, world_steps=1000, patch_size=2,
        max_clip_frames=64, context_frames=64,
    ),
    "voxel-s": _VOXEL,
}  # fmt: skip


def preset(name: str, settings: Iterable[str] = ()) -> TrainConfig:
    """A preset with `field=value` settings applied.

    Raises:
        ValueError: an unknown preset or field, or a value of the wrong type; the message names the known ones.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"unknown preset {name!r}, known are {', '.join(PRESETS)}{hint}")
    return override(PRESETS[name], settings)


def override(config: TrainConfig, settings: Iterable[str]) -> TrainConfig:
    """Apply `field=value` settings, each value of its field's type."""
    changes: dict[str, Any] = {}
    fields = {field.name for field in dataclasses.fields(config)} - {"preset"}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or name not in fields:
            nearest = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(sorted(fields))}"
            raise ValueError(f"--set expects field=value with a field of the training config, got {setting!r}{hint}")
        changes[name] = _parse(name, text, getattr(config, name))
    return dataclasses.replace(config, **changes)


def _parse(name: str, text: str, current: object) -> object:
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        value = tuple(value)
    if name in CAN_BE_NONE and text == "None":
        return None
    if type(value) is not (int if name in CAN_BE_NONE else type(current)):
        raise ValueError(f"--set {name} expects a {type(current).__name__} like {current!r}, got {text!r}")
    return value


def to_json(config: TrainConfig) -> dict:
    """A JSON-ready dict."""
    return dataclasses.asdict(config)


def from_json(values: dict) -> TrainConfig:
    """The inverse of to_json."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"the run's config has unknown fields {', '.join(unknown)}; it comes from another version")
    try:
        return TrainConfig(**values)
    except TypeError as error:
        raise ValueError(f"the run's config lacks fields ({error}); it comes from another version") from error
