"""Goes on with two bundled worlds at once, on one GPU, for as long as one command may run.

    python benchmarks/gpu/side_by_side.py --seconds 400 --seed 502

Small models leave a GPU waiting for the CPU; two of them fill it. For each world: some episodes are recorded, and the
world goes on with them at a steady rate (phase a), while more are recorded and encoded on the other cores; then it goes
on with all of them at a falling rate, with long clips and its own predictions as context (phase b), for as many steps
as the time that is left allows at the speed seen so far. Their parcels (`parcel.py`) lie in $OUT, the logs beside
them; ends with one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter

from farworld.dataset import Dataset
from farworld.train.pipeline import open_run
from farworld.train.ranks import Ranks
from farworld.train.recipes import RECIPES
from farworld.train.recipes.so_far import export_unfinished
from farworld.train.world import STAGE

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from command import run as run_command  # noqa: E402 - after the path it is found on

PARCEL_BYTES = 27 * 2**20  # of each world: both are to come through
# FlexAttention and compiled blocks take a minute to start, which so short a training does not get back.
SETTINGS = ("attention=sdpa", "compile=False", "early_clip_frames=16", "own_context_ratio=0.5", "warmup_steps=100",
            "checkpoint_every=400", "sample_every=1000000")  # fmt: skip
SLOWER = 1.75  # a step of phase b, with predictions, longer clips and the other world beside it, against one of phase a
SECONDS_TO_EXPORT = 34  # scores on held-out episodes included


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a world takes of the machine.

    Attributes:
        first: episodes before its training begins.
        more: episodes at most, recorded meanwhile.
        workers: processes that record at first, and half of them later.
        settings: of its training.
        late_settings: of phase b, besides.
    """

    first: int
    more: int
    workers: int
    settings: tuple[str, ...]
    late_settings: tuple[str, ...] = ()

    def scaled(self, scale: float, settings: tuple[str, ...]) -> Share:
        """With a part of the episodes, at least two, and further settings."""
        first, more = (max(2, round(scale * count)) for count in (self.first, self.more))
        return dataclasses.replace(
            self, first=first, more=more, workers=min(self.workers, first), settings=(*self.settings, *settings)
        )


SHARES = {
    "minecraft": Share(
        first=90, more=330, workers=9,
        # It is told the step size, and learns its large steps when it knows its small ones.
        settings=("world_batch_size=96", "learning_rate=1.5e-3", "max_clip_frames=96", "bootstrap_ratio=0"),
        late_settings=("bootstrap_ratio=0.25",),
    ),
    "dmlab": Share(
        first=150, more=350, workers=4,
        settings=("world_batch_size=160", "learning_rate=2e-3", "max_clip_frames=160"),
    ),
}  # fmt: skip


class Clock:
    """Seconds since the start, and lines that begin with them."""

    def __init__(self, log: Path) -> None:
        self._began, self._log = time.monotonic(), log
        self._log.write_text("")

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, line: str) -> None:
        """To the standard error and the log, which both survive a killed command."""
        line = f"{self.now():6.1f} {line}\n"
        sys.stderr.write(line)
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(line)


class Process:
    """A `farworld` command in the background."""

    def __init__(self, log: Path, clock: Clock, *arguments: object, nice: int = 0) -> None:
        clock.say(f"{log.stem} begins")
        self._clock = clock
        command = ["nice", "-n", str(nice), sys.executable, "-m", "farworld", *map(str, arguments)]
        with open(log, "w", encoding="utf-8") as file:
            # In a group of its own, so that all its processes hear the interrupt.
            self._process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)

    def wait(self, until: float) -> int | None:
        """Its exit code, or None if it still runs at that time."""
        try:
            return self._process.wait(max(0.1, until - self._clock.now()))
        except subprocess.TimeoutExpired:
            return None

    def stop(self, patience: float = 10) -> None:
        """Interrupt it, which lets it save what it has; kill it if that takes too long."""
        for number in (signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
                self.wait(self._clock.now() + patience)


class World:
    """One of the worlds on its way through the phases."""

    def __init__(self, name: str, share: Share, runs: Path, clock: Clock, seconds: float) -> None:
        recipe, self._init = RECIPES[name], ROOT / "assets" / "worlds" / name
        self.name, self._runs, self._clock, self._seconds = name, runs, clock, seconds
        self._share, self.run = share, runs / name
        # The keys of the bundled world, which the recipe of the next one may have more of.
        data = json.loads((self._init / "config.json").read_text(encoding="utf-8"))["training"]["data"]
        env_args = {key: value for key, value in data["env_kwargs"].items() if key != "size"}
        self.recording = [
            "--env", recipe.env, "--size", recipe.size, "--frames", recipe.frames,
            *(part for pair in env_args.items() for part in ("--env-arg", f"{pair[0]}={pair[1]}")),
            *(part for pair in recipe.policies.items() for part in ("--policy", f"{pair[0]}={pair[1]}")),
        ]  # fmt: skip
        self._settings = ["--set", *recipe.settings, *SETTINGS, *share.settings]

    def work(self, seed: int) -> None:
        """All phases, one after the other."""
        clock, share = self._clock, self._share
        early, all_of_it = self._path("early"), self._path("all")
        self._record("record-early", early, share.first, share.workers, seed).wait(self._seconds)
        subprocess.run(["cp", "-r", early, all_of_it], check=True)
        began = clock.now()
        training = self._start(
            "phase-a", "train", "--data", early, "--out", self.run, "--init", self._init,
            *self._settings, "world_steps=1000000", "decay_fraction=0",
        )  # fmt: skip
        recording = self._record("record-more", all_of_it, share.more, max(1, share.workers // 2), seed)
        recording.wait(began + (self._seconds - began) / 4)
        recording.stop()
        encoded = self._path("encoded")
        encoding = self._start(
            "encode", "train", "--stage", "latents", "--data", all_of_it, "--out", encoded, "--init", self._init,
            *self._settings,
        )  # fmt: skip
        is_encoded = encoding.wait(began + (self._seconds - began) / 2) == 0
        encoding.stop()
        training.stop(patience=30)
        for file in (encoded / "latents").iterdir() if is_encoded else ():
            file.replace(self.run / "latents" / file.name)
        self._fall(all_of_it if is_encoded else early)

    def _fall(self, data: Path) -> None:
        """Phase b, and what it leaves."""
        clock, stored = self._clock, sorted((self.run / "checkpoints").glob(f"{STAGE}-*.pt"))[-1]
        checkpoint = torch.load(stored, map_location="cpu", weights_only=True)
        done, rate = checkpoint["step"], checkpoint["step"] / checkpoint["seconds"]
        more = max(2, int((self._seconds - SECONDS_TO_EXPORT - clock.now()) * rate / SLOWER))
        clock.say(f"{self.name}: {done} steps at {rate:.1f}/s, {more} more on {data.name}")
        training = self._start(
            "phase-b", "train", "--data", data, "--out", self.run, "--resume",
            *self._settings, *self._share.late_settings,
            f"world_steps={done + more}", f"decay_fraction={0.75 * more / (done + more):.4f}",
        )  # fmt: skip
        if training.wait(self._seconds - 20) is None:
            training.stop(5)
        if not self.is_finished():
            dataset = Dataset(data)
            ranks = Ranks(device=torch.device("cpu"))
            run = open_run(self.run, None, [], resume=True, stage=STAGE, data=dataset, ranks=ranks)
            export_unfinished(run, dataset, self.run / "so-far")

    def is_finished(self) -> bool:
        """Whether the world is exported; if not, its parcel has a `so-far`."""
        return (self.run / "world" / "model.safetensors").is_file()

    def pack(self, out: Path) -> None:
        """Into OUT, and a line of JSON."""
        subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "gpu" / "parcel.py", "pack", self.run, out,
             "--most-bytes", str(PARCEL_BYTES)], check=True,
        )  # fmt: skip

    def _path(self, name: str) -> Path:
        return self._runs / f"{self.name}-{name}"

    def _start(self, phase: str, *arguments: object, nice: int = 0) -> Process:
        return Process(self._path(f"{phase}.log"), self._clock, *arguments, nice=nice)

    def _record(self, phase: str, out: Path, episodes: int, workers: int, seed: int) -> Process:
        return self._start(
            phase, "record", *self.recording, "--episodes", episodes, "--out", out, "--workers", workers,
            "--seed", seed, nice=10,
        )  # fmt: skip


app = App(name="side_by_side", help="Go on with two bundled worlds at once, on one GPU.")


@app.default
def side_by_side(
    *,
    seconds: Annotated[float, Parameter(help="All of it, packing included.")],
    seed: Annotated[int, Parameter(help="Of the episodes; another one than those that the worlds have seen.")],
    scale: Annotated[float, Parameter(help="Of the number of episodes; a small one to try it without a GPU.")] = 1.0,
    settings: Annotated[
        tuple[str, ...],
        Parameter(name="--set", negative=(), consume_multiple=True, help="field=value, as in farworld train."),
    ] = (),
) -> None:
    """Go on with the bundled worlds, each in a thread of its own."""
    out, runs = Path(os.environ.get("OUT", "build/gpu/out")), Path(os.environ.get("RUNS", "build/gpu/runs"))
    for folder in (out, runs):
        folder.mkdir(parents=True, exist_ok=True)
    # A shell's background jobs ignore the interrupt, and so would ours.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    clock = Clock(out / "side_by_side.log")
    worlds = [
        World(name, share.scaled(scale, settings), runs, clock, seconds) for name, share in SHARES.items()
    ]  # fmt: skip
    threads = [threading.Thread(target=world.work, args=(seed,), daemon=True) for world in worlds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.1, seconds - 5 - clock.now()))
    for world in worlds:
        world.pack(out)
    with tarfile.open(out / "logs.tgz", "w:gz") as archive:
        for path in sorted([*runs.glob("*.log"), *runs.glob("*/logs/*.jsonl")]):
            archive.add(path, path.relative_to(runs))
    finished = {world.name: world.is_finished() for world in worlds}
    print(json.dumps({"seconds": round(clock.now(), 1), "finished": finished}))


if __name__ == "__main__":
    run_command(app)
