"""The steps of a recipe, in order; each can be cut short and gone on with, in this process or another.

    RUN/order.json      what was asked for; every sitting must ask for the same
    RUN/done.json       the steps that are finished
    RUN/held-out/       episodes that nothing is trained on
    RUN/data-1/         the episodes of round 1, and so on
    RUN/base/           the training of autoencoder and world, as `farworld train` leaves it
    RUN/few-step-1/     the training of round 1 that goes on from there, and so on
    RUN/evaluation.json scores on the held-out episodes
    RUN/world/          the world, with its card
    RUN/so-far/         the averaged weights of a training that a sitting left unfinished, as a world to look at or
                        to begin with somewhere else

A round records new episodes and goes on with the weights of the round before, so that a longer run sees new worlds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from farworld.checkpoint import CARD_FILE, CONFIG_FILE, config_from_json, config_to_json, load_world
from farworld.console import progress_bar
from farworld.dataset import Dataset
from farworld.device import describe_hardware
from farworld.envs.recorder import record
from farworld.lock import lock_folder
from farworld.train.autoencoder import STATISTICS
from farworld.train.evaluate import one_step
from farworld.train.pipeline import open_run, run_stages
from farworld.train.ranks import Ranks
from farworld.train.recipes.card import write_card
from farworld.train.recipes.recipe import Order, Recipe
from farworld.train.recipes.so_far import export_unfinished
from farworld.train.run import Run, write_json
from farworld.train.world import STAGE as WORLD_STAGE

STAGES = ("record", "autoencoder", "latents", "world", "few-step", "evaluate")
EVALUATED_STEPS = (1, 2, 4)  # denoising steps a frame
ORDER_FILE, DONE_FILE, EVALUATION_FILE = "order.json", "done.json", "evaluation.json"


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a recipe.

    Attributes:
        stage: what kind of step it is, of STAGES.
        name: its own.
        act: does it, from wherever an earlier sitting left it.
    """

    stage: str
    name: str
    act: Callable[[], None]


class RecipeRun:
    """A recipe at work in its folder; one process at a time."""

    def __init__(self, recipe: Recipe, out: Path, order: Order, *, workers: int, device: torch.device) -> None:
        """Take the folder.

        Args:
            recipe: what is made.
            out: where.
            order: how much of it.
            workers: processes that record.
            device: that trains.

        Raises:
            ValueError: another process is at it, or the folder was begun with another order.
        """
        out.mkdir(parents=True, exist_ok=True)
        self._recipe, self._out, self._order = recipe, out, order
        self._workers, self._ranks = workers, Ranks(device=device)
        self._lock = lock_folder(out)
        try:
            self._check_order()
        except BaseException:
            self._lock.close()
            raise

    def _check_order(self) -> None:
        file, order = self._out / ORDER_FILE, json.loads(json.dumps(dataclasses.asdict(self._order)))
        if not file.is_file():
            write_json(file, order)
            return
        begun = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name, value in order.items() if begun.get(name) != value]
        if changed:
            raise ValueError(
                f"{self._out} was begun with {changed[0]}={begun.get(changed[0])!r}, not {order[changed[0]]!r}; "
                "go on with what it was begun with, or choose another --out"
            )

    def close(self) -> None:
        """Let another process go on."""
        self._lock.close()

    def steps(self, rounds: int) -> Iterator[Step]:
        """All steps of some rounds, in order."""
        recipe, scaled = self._recipe, self._order.scaled
        held_out = scaled(recipe.held_out_episodes)
        yield Step("record", "held-out", partial(
            self._record, "held-out", recipe.held_out_seed, recipe.held_out_frames, held_out
        ))  # fmt: skip
        for number in range(1, rounds + 1):
            data, few_step = f"data-{number}", f"few-step-{number}"
            episodes = scaled(recipe.episodes, least=2)  # one of them is held out of the training for its samples
            yield Step("record", data, partial(
                self._record, data, recipe.seed + number - 1, recipe.frames, episodes
            ))  # fmt: skip
            init = self._order.init or str(self._out / "base")
            if number > 1:
                init = str(self._out / f"few-step-{number - 1}")
            elif self._order.init is None:
                for stage in ("autoencoder", "latents", "world"):
                    yield Step(stage, f"base-{stage}", partial(self._train, "base", data, stage))
            yield Step("few-step", few_step, partial(self._train, few_step, data, "all", init=init))
            yield Step("evaluate", f"evaluate-{number}", partial(self._evaluate, number))

    def work(self, *, rounds: int, until: str) -> dict[str, Any]:
        """Do what is not done yet.

        Args:
            rounds: how many there are to be in all.
            until: the last stage that is done; the first step of a later one ends the work.

        Returns:
            JSON-ready: whether all is finished, the steps that are, and at the end the scores.
        """
        done = self._done()
        for step in self.steps(rounds):
            if STAGES.index(step.stage) > STAGES.index(until):
                break
            if step.name not in done:
                step.act()
                done.append(step.name)
                write_json(self._out / DONE_FILE, {"done": done})
        return self.report(rounds)

    def report(self, rounds: int) -> dict[str, Any]:
        """Where the run stands; see `work`."""
        done = self._done()
        finished = all(step.name in done for step in self.steps(rounds))
        report = {"run": str(self._out), "finished": finished, "done": done}
        if finished:
            report |= json.loads((self._out / EVALUATION_FILE).read_text(encoding="utf-8"))
            report["world"] = str(self._out / "world")
        return report

    def export_so_far(self, rounds: int) -> Path | None:
        """Write `so-far/`, if the next step is a training that has begun.

        Returns:
            The world's folder, or None.
        """
        done = self._done()
        step = next((step for step in self.steps(rounds) if step.name not in done), None)
        if step is None or step.stage not in ("world", "few-step"):
            return None
        round_number = sum(name.startswith("evaluate-") for name in done) + 1
        path = self._out / ("base" if step.stage == "world" else step.name)
        if not any(path.glob(f"checkpoints/{WORLD_STAGE}-*.pt")):
            return None
        dataset = Dataset(self._out / f"data-{round_number}")
        run = open_run(path, None, [], resume=True, stage=WORLD_STAGE, data=dataset, ranks=self._ranks)
        with contextlib.closing(run):
            export_unfinished(run, dataset, self._out / "so-far")
        return self._out / "so-far"

    def _done(self) -> list[str]:
        file = self._out / DONE_FILE
        return json.loads(file.read_text(encoding="utf-8"))["done"] if file.is_file() else []

    # The stages

    def _record(self, name: str, seed: int, frames: int, episodes: int) -> None:
        folder = self._out / name
        missing = episodes - (len(Dataset(folder)) if (folder / "dataset.json").is_file() else 0)
        if missing <= 0:
            return
        with progress_bar(f"recording {name}", missing * frames, unit="frames") as advance:
            record(
                self._recipe.recording(seed=seed, frames=frames), folder,
                episodes=missing, workers=self._workers, on_episode=lambda count: advance(count),
            )  # fmt: skip

    def _train(self, name: str, data: str, stage: str, *, init: str | None = None) -> None:
        recipe, order, path = self._recipe, self._order, self._out / name
        dataset = Dataset(self._out / data)
        settings = list(recipe.settings)
        world_steps = recipe.world_steps
        if init is not None:
            settings += recipe.few_step_settings
            world_steps = recipe.few_step_steps
            if not any(path.glob(f"checkpoints/{STATISTICS}-*.pt")):  # killed before the weights had been copied
                shutil.rmtree(path, ignore_errors=True)
        settings += [
            f"autoencoder_steps={order.scaled(recipe.autoencoder_steps)}",
            f"world_steps={order.scaled(world_steps)}",
            *order.settings,
        ]
        begun = Run.stored_config(path) is not None
        run = open_run(
            path, None if begun else order.preset or recipe.preset, settings,
            resume=begun, stage=stage, data=dataset, ranks=self._ranks, init=None if begun else init,
        )  # fmt: skip
        with contextlib.closing(run):
            if init == str(self._out / "base") and not any(run.latents.iterdir()):  # same autoencoder, same episodes
                shutil.copytree(self._out / "base" / run.latents.name, run.latents, dirs_exist_ok=True)
            run_stages(run, dataset, stage)

    def _evaluate(self, number: int) -> None:
        """Score the world of a round on the held-out episodes, and make it the run's."""
        source, data = self._out / f"few-step-{number}" / "world", Dataset(self._out / "held-out")
        world = load_world(source, device=self._ranks.device).model
        episodes = list(range(self._order.scaled(self._recipe.held_out_episodes)))
        scores = {
            f"{steps}_steps": one_step(world, data, episodes, num_steps=steps) for steps in EVALUATED_STEPS
        }  # fmt: skip
        scores["shuffled_actions"] = one_step(world, data, episodes, shuffle_actions=True)
        evaluation = {
            "seed": self._recipe.held_out_seed,
            "hardware": describe_hardware(self._ranks.device),
            "rounds": number,
            "one_step": scores,
        }
        write_json(self._out / EVALUATION_FILE, evaluation)
        self._publish(source, evaluation)

    def _publish(self, source: Path, evaluation: dict[str, Any]) -> None:
        """Copy a round's world to the run's, under its own name and with the recipe's card and licences."""
        new, world = self._out / ".world.tmp", self._out / "world"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(source, new)
        config = config_from_json(json.loads((new / CONFIG_FILE).read_text(encoding="utf-8")))
        training = {**config.training, "recipe": dataclasses.asdict(self._order), "held_out": evaluation}
        config = dataclasses.replace(config, name=self._recipe.name, training=training)
        write_json(new / CONFIG_FILE, config_to_json(config))
        parts = [self._out / "base", *(self._out / f"few-step-{i + 1}" for i in range(evaluation["rounds"]))]
        trainings = {
            part.name: json.loads((part / "world" / CONFIG_FILE).read_text(encoding="utf-8"))["training"]
            for part in parts
            if (part / "world").is_dir()
        }
        card = write_card(self._recipe, self._order, config, trainings, evaluation)
        (new / CARD_FILE).write_text(card, encoding="utf-8")
        for licence in self._recipe.licences:
            text = resources.files("farworld.assets").joinpath(licence).read_text(encoding="utf-8")
            (new / f"LICENSE-{licence.split('/')[-2]}").write_text(text, encoding="utf-8")
        shutil.rmtree(world, ignore_errors=True)
        new.rename(world)
        shutil.rmtree(self._out / "so-far", ignore_errors=True)
