"""Training settings and their presets: one flat dataclass, so that `--set field=value` reaches everything."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from farworld.models.attention import Positions
from farworld.models.autoencoder import AutoencoderConfig
from farworld.models.far import FARConfig
from farworld.models.official import HEAD_SIZE, SCALING_FACTOR, SHORT_TERM_FRAMES, VARIANTS
from farworld.train.discriminator import smallest_frame
from farworld.train.lpips import SMALLEST as SMALLEST_FOR_LPIPS
from farworld.world_model import LAYOUTS

AT_LEAST_ONE = (
    "autoencoder_steps", "world_steps", "autoencoder_batch_size", "world_batch_size", "checkpoint_every",
    "sample_every", "log_every", "accumulate", "num_layers", "num_heads", "num_steps", "num_contexts", "start_frames",
    "autoencoder_gan_width", "autoencoder_gan_layers", "frame_interval", "fetched_megabytes",
)  # fmt: skip
# What the weights of each stage's checkpoints depend on.
ARCHITECTURE = {
    "autoencoder": (
        "frame_size", "latent_channels", "autoencoder_widths", "encoder_blocks", "decoder_blocks",
        "autoencoder_attention_stages",
    ),
    "world": (
        "num_layers", "num_heads", "head_size", "patch_size", "context_patch_size", "short_term_frames", "copy_gate",
        "causal", "positions", "shortcut_steps", "condition",
    ),
}  # fmt: skip
CAN_BE_NONE = ("context_patch_size", "shortcut_steps")
# What a text may be.
CHOICES = {
    "condition": ("action", "label", "none"),
    "layout": LAYOUTS,
    "attention": ("auto", "sdpa", "flex"),
    "positions": ("rope", "alibi"),
    "clip_lengths": ("log-uniform", "uniform"),
    "precision": ("auto", "float32", "bfloat16"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that a run can be told. Sizes in latent pixels or frames."""

    preset: str
    seed: int = 0
    frame_size: int  # pixels, height and width

    # What is made of the data
    condition: str = "action"  # what frames are told: their action, the label that all actions of an episode are, none
    frame_interval: int = 1  # every how many frames of an episode the world shows; more than 1 not with actions
    flip: bool = False  # half of the clips and frames mirrored, left to right; not with actions

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
    latent_scale: float = 0.0  # what latents are multiplied by; 0: mean and scale of each channel are measured

    # World model (FAR-Long)
    num_layers: int
    num_heads: int
    head_size: int = 64
    patch_size: int
    context_patch_size: int | None  # None: no long-term stream (FAR instead of FAR-Long), every frame is fine
    short_term_frames: int
    layout: str = "sliding"  # of long short-term attention; anchored, as in the paper: fine_frames = short_term_frames
    causal: bool = True  # False: Video-DiT, the paper's baseline; with context_patch_size=None and copy_gate=False
    positions: str = "rope"  # how attention knows distances in time; or alibi, see farworld.models.attention.Positions
    copy_gate: bool = True  # take over what stands still from the frame before, see farworld.models.far
    shortcut_steps: int | None = None  # of the finest step size that the model is told, a power of two; None: no size
    world_steps: int
    world_batch_size: int = 4  # clips
    fine_frames: int = 16  # frames of a clip that are trained on, the last ones
    early_clip_frames: int = 32  # longest clip before the decay; short clips teach motion for a fraction of the time
    max_clip_frames: int = 300  # longest clip in the decay
    clip_lengths: str = "log-uniform"  # how they are drawn, from fine_frames up; or uniform, as in the paper
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)  # of AdamW
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clean_context_ratio: float = 0.5  # probability that a frame is clean context instead of a target
    own_context_ratio: float = 0.5  # in the decay: share of clips whose context is partly the model's own predictions
    bootstrap_ratio: float = 0.25  # with shortcut_steps: share of clips that learn large steps from two halves
    context_noise_max: float = 0.0  # flow time; context frames are noised up to it, and the model is told by how much
    idle_ratio: float = 0.0  # share of clips that repeat one frame under the noop; for worlds that then hold still
    action_dropout: float = 0.1  # probability of the null action, per frame; of the null label, per clip
    timestep_mean: float = 0.0  # of the logit-normal timesteps
    timestep_std: float = 1.0
    pure_noise_ratio: float = 0.4  # probability that a target starts from pure noise, as play does

    # Both
    warmup_steps: int = 100  # in which the learning rate rises; at most a tenth of all
    decay_fraction: float = 0.3  # last part of the steps, in which the learning rate falls to zero; 0: it stays
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
        for name in ("autoencoder_widths", "encoder_blocks", "decoder_blocks", "autoencoder_betas", "betas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise ValueError(f"{name} must be {known}, got {getattr(self, name)!r}")
        if self.compile and self.recompute:  # a block that runs again may take another of the compiled graphs
            raise ValueError(
                "recompute=True and compile=True exclude each other; set one of them, or fsdp or accumulate"
            )
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.autoencoder_batch_size % 4:
            raise ValueError(f"autoencoder_batch_size must be a multiple of 4, got {self.autoencoder_batch_size}")
        if not 0 <= self.clean_context_ratio < 1:
            raise ValueError(f"clean_context_ratio must be in [0, 1), got {self.clean_context_ratio}")
        for name in ("own_context_ratio", "idle_ratio", "bootstrap_ratio", "decay_fraction", "action_dropout"):
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
        self._check_conditioning()
        if self.early_clip_frames < self.fine_frames:
            raise ValueError(
                f"early_clip_frames must be at least fine_frames {self.fine_frames}, got {self.early_clip_frames}"
            )
        self.far(num_actions=1)  # checks the transformer's sizes

    def _check_conditioning(self) -> None:
        if self.condition == "action" and (self.flip or self.frame_interval > 1):
            raise ValueError(
                "flip and frame_interval are for videos without actions: mirrored, a left turn is a right one, and of "
                "several actions between two frames only one could be told; set condition to label or none"
            )
        if self.condition != "action" and self.idle_ratio:
            raise ValueError(
                f"idle_ratio repeats frames under an action, and condition is {self.condition}; set it to 0"
            )
        if self.condition == "label" and self.start_frames < 2:
            raise ValueError("start_frames must be at least 2 with labels, since one frame alone has none")
        if self.layout == "anchored" and self.fine_frames != self.short_term_frames:
            raise ValueError(
                "the anchored layout is learnt from clips whose fine frames are the short-term window, got fine_frames "
                f"{self.fine_frames} and short_term_frames {self.short_term_frames}"
            )

    def _check_autoencoder_losses(self) -> None:
        for name in (
            "autoencoder_square_weight", "autoencoder_lpips_weight", "autoencoder_gan_weight", "latent_scale",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("autoencoder_betas", "betas"):
            if len(getattr(self, name)) != 2 or not all(0 <= beta < 1 for beta in getattr(self, name)):
                raise ValueError(f"{name} must be two numbers in [0, 1), got {getattr(self, name)}")
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
        """The step at which a stage's learning rate begins to fall; total_steps if it never does."""
        return total_steps - (max(1, round(total_steps * self.decay_fraction)) if self.decay_fraction else 0)

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
        """The transformer's sizes; num_actions is of the data's vocabulary, labels included."""
        latent_size = self.frame_size // self.autoencoder().compression
        return FARConfig(
            latent_channels=self.latent_channels,
            latent_height=latent_size,
            latent_width=latent_size,
            num_actions=0 if self.condition == "none" else num_actions,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_size=self.head_size,
            patch_size=self.patch_size,
            context_patch_size=self.context_patch_size,
            short_term_frames=self.short_term_frames,
            copy_gate=self.copy_gate,
            positions=Positions.alibi() if self.positions == "alibi" else Positions(),
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
    latent_channels=16,
    autoencoder_widths=(32, 64, 128),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 2, 2),
    autoencoder_steps=4000,
    autoencoder_lpips_weight=0.3,
    num_layers=6,
    num_heads=4,
    patch_size=2,
    context_patch_size=8,
    short_term_frames=4,
    world_steps=4000,
    idle_ratio=0.1,
)


def _paper(
    preset: str,
    variant: str,
    *,
    compression: int,
    clip_frames: int,
    world_steps: int,
    num_steps: int = 50,
    **settings: Any,
) -> TrainConfig:
    """A set-up of the paper: Table 7, and what the configurations that its authors published say beyond that.

    There a step is shared by 8 GPUs with 4 clips each. What differs here: latents of all frames are cached, so that
    clips are cut out at the centre when a dataset is imported and not anew each time; episodes that are shorter than
    a clip are left out, not padded with black; the autoencoder of a long model warms up as well.

    Args:
        preset: its name.
        variant: of `farworld.models.official.VARIANTS`.
        compression: of the DC-AE, to latents of 8×8×32.
        clip_frames: frames of a clip; of a model with a long-term stream, of the longest one.
        world_steps: of training.
        num_steps: denoising steps a frame, in samples and in play.
        settings: other fields.
    """
    size, stages = VARIANTS[variant], compression.bit_length() - 1
    is_long = size.context_patch_size is not None
    window = SHORT_TERM_FRAMES if is_long else clip_frames
    return TrainConfig(
        preset=preset,
        frame_size=8 * compression,
        latent_channels=32,
        autoencoder_widths=(256, 512, 512, 1024, 1024)[:stages],
        encoder_blocks=(4, 8, 2, 2, 2)[:stages],
        decoder_blocks=(5, 10, 2, 2, 2)[:stages],
        autoencoder_attention_stages=stages - 2,
        autoencoder_steps=200_000,
        autoencoder_batch_size=512,  # 128 places, with 4 frames of each
        autoencoder_learning_rate=1e-4,
        autoencoder_betas=(0.5, 0.9),
        autoencoder_ema_decay=0.9999,
        autoencoder_square_weight=0.0,
        autoencoder_lpips_weight=1.0,
        autoencoder_gan_weight=0.5,
        autoencoder_gan_learning_rate=1e-4,
        latent_noise=0.0,
        latent_penalty=0.0,
        latent_scale=SCALING_FACTOR,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        head_size=HEAD_SIZE,
        patch_size=1,
        context_patch_size=size.context_patch_size,
        short_term_frames=window,
        layout="anchored" if is_long else "sliding",
        copy_gate=False,
        world_steps=world_steps,
        world_batch_size=32,
        fine_frames=window,
        early_clip_frames=clip_frames,
        max_clip_frames=clip_frames,
        clip_lengths="uniform",
        learning_rate=1e-4,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        ema_decay=0.9999,
        clean_context_ratio=0.1,
        own_context_ratio=0.0,
        pure_noise_ratio=0.0,
        warmup_steps=10_000 if is_long else 0,
        decay_fraction=0.0,
        precision="bfloat16",
        checkpoint_every=5_000,
        sample_every=20_000,
        log_every=100,
        num_steps=num_steps,
        context_frames=clip_frames,
        **settings,
    )


def _ucf101(preset: str, variant: str, *, compression: int, condition: str) -> TrainConfig:
    """Video generation on UCF-101: every third frame, mirrored or not, of 101 labelled classes or without labels."""
    return _paper(
        preset, variant, compression=compression, clip_frames=16, world_steps=400_000,
        condition=condition, frame_interval=3, flip=True, start_frames=2,
    )  # fmt: skip


# xs and s are for CPUs, m for one GPU of 24 GB.
_OURS = (
    dataclasses.replace(
        _MAZE, preset="maze-xs", autoencoder_widths=(32, 64, 128), decoder_blocks=(1, 1, 1), autoencoder_steps=1000,
        num_layers=4, num_heads=4, world_steps=1000, max_clip_frames=64, context_frames=64,
    ),
    _MAZE,
    dataclasses.replace(
        _MAZE, preset="maze-m", autoencoder_widths=(64, 128, 256), encoder_blocks=(1, 2, 2), decoder_blocks=(2, 3, 3),
        autoencoder_steps=20_000, autoencoder_batch_size=64, autoencoder_learning_rate=5e-4,
        num_layers=12, num_heads=8, head_size=64, patch_size=1, short_term_frames=16, fine_frames=32,
        early_clip_frames=64, world_steps=60_000, world_batch_size=16, accumulate=2, learning_rate=5e-4,
        ema_decay=0.9995, warmup_steps=1000, checkpoint_every=1000, sample_every=5000, log_every=50,
    ),
    dataclasses.replace(
        _VOXEL, preset="voxel-xs", autoencoder_widths=(16, 32, 64), decoder_blocks=(1, 1, 1),
        autoencoder_batch_size=8, autoencoder_steps=1000, num_layers=4, num_heads=2, world_steps=1000, patch_size=4,
        max_clip_frames=64, context_frames=64,
    ),
    _VOXEL,
    dataclasses.replace(
        _VOXEL, preset="voxel-m", autoencoder_widths=(64, 128, 256), encoder_blocks=(1, 1, 2),
        decoder_blocks=(1, 2, 3), autoencoder_steps=20_000, autoencoder_batch_size=64,
        autoencoder_learning_rate=5e-4, num_layers=12, num_heads=10, short_term_frames=16, fine_frames=32,
        early_clip_frames=64, world_steps=60_000, world_batch_size=16, accumulate=2, learning_rate=5e-4,
        ema_decay=0.9995, warmup_steps=1000, checkpoint_every=1000, sample_every=5000, log_every=50,
    ),
)  # fmt: skip
_PAPERS = (
    _ucf101("far-l-ucf101-128", "far_l", compression=16, condition="label"),
    _ucf101("far-l-ucf101-128-uncond", "far_l", compression=16, condition="none"),
    _ucf101("far-l-ucf101-256", "far_l", compression=32, condition="label"),
    _ucf101("far-l-ucf101-256-uncond", "far_l", compression=32, condition="none"),
    _ucf101("far-xl-ucf101-256", "far_xl", compression=32, condition="label"),
    _ucf101("far-xl-ucf101-256-uncond", "far_xl", compression=32, condition="none"),
    _paper(
        "far-b-ucf101-64", "far_b", compression=8, clip_frames=16, world_steps=200_000,
        condition="none", flip=True, start_frames=4,
    ),
    _paper(
        "far-b-bair-64", "far_b", compression=8, clip_frames=30, world_steps=200_000,
        condition="none", start_frames=2,
    ),
    _paper(
        "far-b-long-dmlab-64", "far_b_long", compression=8, clip_frames=300, world_steps=1_000_000,
        num_steps=4, start_frames=36,
    ),
    _paper(
        "far-m-long-minecraft-128", "far_m_long", compression=16, clip_frames=300, world_steps=1_000_000,
        num_steps=4, start_frames=36,
    ),
)  # fmt: skip
PRESETS: dict[str, TrainConfig] = {config.preset: config for config in (*_OURS, *_PAPERS)}


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
