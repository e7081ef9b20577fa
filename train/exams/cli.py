"""The exams among the commands of `farworld eval`."""

from __future__ import annotations

import contextlib
import json as json_format
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from farworld.console import print_json, progress_bar, stdout_to_stderr
from farworld.env_options import EnvOptions
from farworld.play.cli import CKPT_HELP, LAYOUT_HELP, prepare_environment

if TYPE_CHECKING:
    from farworld.envs.environments import PixelEnv
    from farworld.rollout import Rollout
    from farworld.train.exams.walks import ExamResult
    from farworld.world_model import WorldModel

ENV_HELP = (
    "The real world to judge against: maze, voxel or another one. Without it the one that the world was trained in, "
    "with its arguments; --env-arg adds to them."
)
SEVERAL = Parameter(consume_multiple=True, negative=())
RESULT_PARTS = ("name", "summary", "series", "table", "notes", "plots")  # of a report; the rest is what it depends on


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExamOptions:
    """What all exams take."""

    ckpt: Annotated[str, Parameter(help=f"A world: {CKPT_HELP}")]
    env: Annotated[str | None, Parameter(help=ENV_HELP)] = None
    steps: Annotated[int | None, Parameter(help="Denoising steps a frame; the world's own without it.")] = None
    context: Annotated[int | None, Parameter(help="Frames remembered; the world's own without it.")] = None
    layout: Annotated[Literal["sliding", "anchored"] | None, Parameter(help=LAYOUT_HELP)] = None
    seed: Annotated[int, Parameter(help="Of the model's noise.")] = 0
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where the model runs.")] = "auto"
    out: Annotated[Path | None, Parameter(help="A folder for the report, as JSON and as a page, and videos.")] = None
    json: Annotated[bool, Parameter(negative=(), help="Print the report as one JSON object on stdout.")] = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A world in an exam, and the real one beside it."""

    world: WorldModel
    env: PixelEnv
    options: ExamOptions

    def rollout(self, streams: int, context_frames: int | None = None) -> Rollout:
        """Streams of the world, with another memory than its own if that is given."""
        from farworld.rollout import Rollout

        return Rollout(
            self.world, batch_size=streams, num_steps=self.options.steps, layout=self.options.layout,
            context_frames=self.options.context if context_frames is None else context_frames,
        )  # fmt: skip


def _examine(options: ExamOptions, env_options: EnvOptions | None, exam: Callable[[Candidate], ExamResult]) -> None:
    """Load the world, make the environment, examine, and say what came of it."""
    prepare_environment()
    with stdout_to_stderr() if options.json else contextlib.nullcontext():
        from farworld.checkpoint import load_world
        from farworld.device import choose_device
        from farworld.envs.environments import PixelEnv, resolve_env_id
        from farworld.train.exams.walks import check_world_fits, exam_settings
        from farworld.train.report import conditions

        world = load_world(options.ckpt, device=choose_device(options.device)).model
        env_id = None if options.env is None else resolve_env_id(options.env)
        settings = exam_settings(world.config, env_id, (env_options or EnvOptions()).settings())
        with contextlib.closing(PixelEnv(settings)) as env:
            check_world_fits(world.config, env)
            result = exam(Candidate(world, env, options))
    own = world.config
    report = {
        **result.report, "ckpt": options.ckpt, "env": settings.env_id, "env_kwargs": settings.env_kwargs,
        "steps": options.steps or own.num_steps, "context": options.context or own.context_frames,
        "layout": options.layout or own.layout, "seed": options.seed, **conditions(world.device),
    }  # fmt: skip
    if options.out is not None:
        _write(options.out, report, result.videos, world)
    if options.json:
        print_json(report)
    else:
        _print(report)


def _write(folder: Path, report: dict[str, Any], videos: dict[str, Any], world: WorldModel) -> None:
    from farworld.train.report import write_report
    from farworld.video import VideoWriter

    folder.mkdir(parents=True, exist_ok=True)
    name = report["name"]
    (folder / f"{name}.json").write_text(json_format.dumps(report, indent=1) + "\n", encoding="utf-8")
    facts = {key: value for key, value in report.items() if key not in RESULT_PARTS}
    write_report(
        folder / f"{name}.html", f"{world.config.name}: {name}", facts, [report], videos,
        videos_show="Truth on the left, the dream on the right, unless the notes say otherwise.",
    )  # fmt: skip
    for name, frames in videos.items():
        path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.mp4"
        with VideoWriter(path, world.config.frames_per_second, *frames.shape[1:3], scale=2) as video:
            for frame in frames:
                video.write(frame)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    summary = Table(title=f"{report['ckpt']}: {report['name']}", show_header=False)
    for name, value in report["summary"].items():
        summary.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(summary)
    for note in report["notes"]:
        console.print(f"- {note}", highlight=False, markup=False)


def revisit(
    options: ExamOptions,
    *,
    streams: Annotated[int, Parameter(help="Walks that are taken at once, each in a world of its own.")] = 4,
    steps_out: Annotated[tuple[int, ...], SEVERAL, Parameter(help="Of each walk; 0 looks around twice.")] = (0, 4, 12),
    env_options: EnvOptions | None = None,
) -> None:
    """Examine what a world remembers; see `farworld.train.exams.revisit`."""

    def exam(candidate: Candidate) -> ExamResult:
        from farworld.train.exams.revisit import num_frames, revisit, short_memory_frames

        env, window = candidate.env, candidate.world.config.model.short_term_frames
        short = short_memory_frames(env, window)
        total = 2 * streams * num_frames(env, steps_out)
        with progress_bar("revisit", total, unit="frames") as advance:
            return revisit(
                candidate.rollout(streams), env, streams=streams, short_memory=candidate.rollout(streams, short),
                short_frames=short, steps_out=steps_out, noise_seed=options.seed, advance=advance,
            )  # fmt: skip

    _examine(options, env_options, exam)


def drift(
    options: ExamOptions,
    *,
    streams: Annotated[int, Parameter(help="Worlds that each script of keys is played in.")] = 2,
    frames: Annotated[int, Parameter(help="Frames to dream.")] = 1200,
    real_episodes: Annotated[int, Parameter(help="Real ones of each script, to compare with.")] = 16,
    env_options: EnvOptions | None = None,
) -> None:
    """Examine how long a world lasts; see `farworld.train.exams.drift`."""

    def exam(candidate: Candidate) -> ExamResult:
        from farworld.train.exams.drift import drift, scripts, work
        from farworld.train.exams.walks import round_trip_of

        world, env = candidate.world, candidate.env
        num_scripts = len(scripts(env.spec.action_vocabulary, 1))
        total = num_scripts * work(streams, frames, real_episodes)
        with progress_bar("drift", total, unit="frames") as advance:
            return drift(
                candidate.rollout(num_scripts * streams), env, streams=streams, num_frames=frames,
                round_trip=round_trip_of(world), real_episodes=real_episodes, noise_seed=options.seed, advance=advance,
            )  # fmt: skip

    _examine(options, env_options, exam)


def control(
    options: ExamOptions,
    *,
    streams: Annotated[int, Parameter(help="Dreams, each from a world of its own.")] = 16,
    frames: Annotated[int, Parameter(help="Frames of each.")] = 32,
    judge: Annotated[
        Path | None, Parameter(help="File of the judge, made if it is not there; without it in the user's cache.")
    ] = None,
    env_options: EnvOptions | None = None,
) -> None:
    """Examine whether a world heeds its keys; see `farworld.train.exams.control`."""

    def exam(candidate: Candidate) -> ExamResult:
        from farworld.train.exams.control import control
        from farworld.train.exams.inverse_dynamics import JudgeTraining
        from farworld.train.exams.walks import round_trip_of

        training = JudgeTraining()
        with progress_bar("control", training.steps + 2 * streams * frames, unit="steps and frames") as advance:
            return control(
                candidate.rollout(streams), candidate.env, streams=streams, num_frames=frames, judge_file=judge,
                training=training, round_trip=round_trip_of(candidate.world), noise_seed=options.seed,
                advance=advance,
            )  # fmt: skip

    _examine(options, env_options, exam)


def dig(
    options: ExamOptions,
    *,
    streams: Annotated[int, Parameter(help="Worlds for each change.")] = 4,
    look_away: Annotated[tuple[int, ...], SEVERAL, Parameter(help="Turns away, and as many back.")] = (1, 4, 12),
    env_options: EnvOptions | None = None,
) -> None:
    """Examine whether changes last; see `farworld.train.exams.dig`."""

    def exam(candidate: Candidate) -> ExamResult:
        from farworld.train.exams.dig import dig, edits_of, num_frames

        total = streams * len(edits_of(candidate.env)) * num_frames(look_away)
        with progress_bar("dig", total, unit="frames") as advance:
            return dig(
                candidate.rollout(streams), candidate.env, streams=streams, look_away=look_away,
                noise_seed=options.seed, advance=advance,
            )  # fmt: skip

    _examine(options, env_options, exam)


def memory_maze(
    options: ExamOptions,
    *,
    streams: Annotated[int, Parameter(help="Mazes.")] = 2,
    true_frames: Annotated[int, Parameter(help="Frames of the true walk to and fro.")] = 120,
    frames: Annotated[int, Parameter(help="Frames to dream, over seen and over new ground.")] = 30,
    env_options: EnvOptions | None = None,
) -> None:
    """Examine whether ground is known again; see `farworld.train.exams.memory_maze`."""

    def exam(candidate: Candidate) -> ExamResult:
        from farworld.train.exams.memory_maze import memory_maze

        with progress_bar("memory maze", 2 * streams * frames, unit="frames") as advance:
            return memory_maze(
                candidate.rollout(streams), candidate.env, streams=streams, context=true_frames, dreamed=frames,
                noise_seed=options.seed, advance=advance,
            )  # fmt: skip

    _examine(options, env_options, exam)
