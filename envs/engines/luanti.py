"""Luanti, which was Minetest: a free block world, played through the keys and the mouse of a display in memory.

The client runs under Xvfb, whose picture lies in a file that is mapped into memory; xdotool presses its keys and moves
its mouse; a mod of ours puts the player where an episode begins. It is the whole game, with nothing patched, and so it
runs in its own time: recording takes as long as playing, and no two episodes are equal to the bit.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import math
import mmap
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from farworld.actions import Action, ActionVocabulary

NEEDS = "apt install minetest minetest-data xvfb xdotool"
START_SECONDS = 60.0  # to start the game, and to make the land of an episode
SETTLE_SECONDS = 1.5  # until the client has drawn the land around a new place
MIN_SCREEN = 128  # pixels; the client wants a window
MAX_DISTANCE = 20_000  # blocks from the middle of the map, which ends at 31,000

# Name, farworld's keys, the game's keys and mouse buttons, turns to the right and down.
_ACTIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], int, int], ...] = (
    ("noop", (), (), 0, 0),
    ("forward", ("up",), ("w",), 0, 0),
    ("backward", ("down",), ("s",), 0, 0),
    ("strafe_left", ("a",), ("a",), 0, 0),
    ("strafe_right", ("d",), ("d",), 0, 0),
    ("turn_left", ("left",), (), -1, 0),
    ("turn_right", ("right",), (), 1, 0),
    ("look_up", ("w",), (), 0, -1),
    ("look_down", ("s",), (), 0, 1),
    ("forward_left", ("up", "left"), ("w",), -1, 0),
    ("forward_right", ("up", "right"), ("w",), 1, 0),
    ("jump", ("space",), ("space",), 0, 0),
    ("forward_jump", ("up", "space"), ("w", "space"), 0, 0),
    ("dig", ("f",), ("button1",), 0, 0),
    ("place", ("e",), ("button3",), 0, 0),
)


def arguments(size: int) -> dict[str, Any]:
    """It draws any size itself."""
    return {"size": size}


def prepare() -> None:
    """See that all it needs is there.

    Raises:
        ImportError: a program is missing; the message has the command.
    """
    missing = [name for name in ("Xvfb", "xdotool") if shutil.which(name) is None]
    if _game() is None:
        missing.insert(0, "luanti or minetest")
    if missing:
        raise ImportError(f"Luanti needs the program {', '.join(missing)}; Debian and Ubuntu: {NEEDS}")


def _game() -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/games", "/usr/local/games"])
    return shutil.which("luanti", path=path) or shutil.which("minetest", path=path)


class LuantiEnv(gymnasium.Env):
    """Luanti as a Gymnasium environment: Minetest Game in creative mode, without creatures and without damage.

    Actions: Discrete(15), see `action_vocabulary`. Keys are held from one frame to the next.

    Observation: uint8 (size, size, 3), what is seen at the next tick of `frames_per_second`.

    Reward: none.

    Start: the seed draws a place on land, a direction, and a time of the day. What was dug or built in earlier
    episodes stays, elsewhere in the same map.

    End: never.

    Args:
        render_mode: only rgb_array.
        size: height and width of the picture; drawn at twice the size and averaged.
        frames_per_second: pace of the game's own clock at which actions are taken.
        map_seed: of the map.
        mapgen: the map generator: v7, valleys, carpathian, flat, fractal, v6 or v5.
        turn_degrees: of one turn or look.
        viewing_range: in blocks.
        game: the game's id, as it is installed.
    """

    metadata = {"render_modes": ["rgb_array"]}
    action_vocabulary = ActionVocabulary(tuple(Action(name=name, keys=keys) for name, keys, *_ in _ACTIONS))

    def __init__(
        self,
        render_mode: str | None = "rgb_array",
        size: int = 64,
        frames_per_second: float = 10.0,
        map_seed: int = 0,
        mapgen: str = "v7",
        turn_degrees: float = 15.0,
        viewing_range: int = 80,
        game: str = "minetest",
    ) -> None:
        if not 16 <= size <= 512 or not 0 < frames_per_second <= 30 or not 0 < turn_degrees <= 45:
            raise ValueError(
                "size must be 16 to 512, frames_per_second above 0 and 30 at most, turn_degrees above 0 and 45 at "
                f"most, got {size}, {frames_per_second} and {turn_degrees}"
            )
        prepare()
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": frames_per_second}
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(_ACTIONS))
        self._size = size
        self._scale = -(-max(MIN_SCREEN, 2 * size) // size)
        self._period = 1 / frames_per_second
        self._turn_degrees = turn_degrees
        self._settings = {
            "fixed_map_seed": map_seed,
            "mg_name": mapgen,
            "viewing_range": viewing_range,
        }
        self._game_id = game
        self._questions = 0
        self._held: tuple[str, ...] = ()
        self._next_tick = 0.0
        self._closing = contextlib.ExitStack()
        self._client: subprocess.Popen[bytes] | None = None

    @property
    def engine_version(self) -> str:
        """The release of the game."""
        result = subprocess.run([_game() or "luanti", "--version"], capture_output=True, text=True, check=False)
        words = result.stdout.split()
        return words[1] if len(words) > 1 else ""

    # Starting

    def _start(self) -> None:
        with contextlib.ExitStack() as failed:
            folder = Path(failed.enter_context(tempfile.TemporaryDirectory(prefix="farworld-luanti-")))
            side = self._size * self._scale
            display = self._start_display(failed, folder, side)
            self._world = folder / "world"
            self._write_world(folder, side)
            environment = {**os.environ, "DISPLAY": display, "LIBGL_ALWAYS_SOFTWARE": "1", "HOME": str(folder)}
            command = [_game() or "luanti", "--go", "--world", self._world, "--gameid", self._game_id]
            command += [
                "--port",
                str(_free_port()),
                "--name",
                "farworld",
                "--config",
                folder / "conf",
                "--logfile",
                folder / "log.txt",
            ]
            self._log = folder / "log.txt"
            self._client = self._run(failed, command, environment)
            keys = self._run(failed, ["xdotool", "-"], environment, stdin=subprocess.PIPE)
            assert keys.stdin is not None
            self._keys: IO[bytes] = keys.stdin
            self._ask("look")
            self._focus(environment)
            self._pixels_per_degree = self._calibrate()
            self._closing = failed.pop_all()

    @staticmethod
    def _run(stack: contextlib.ExitStack, command: list[Any], env: dict[str, str], **kwargs: Any) -> subprocess.Popen:
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **{"stdin": None, **kwargs}
        )
        stack.callback(_end, process)
        return process

    def _start_display(self, stack: contextlib.ExitStack, folder: Path, side: int) -> str:
        """Start a display of its own; its name."""
        screen = folder / "screen"
        screen.mkdir()
        read, write = os.pipe()
        try:
            command = ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{side}x{side}x24", "-fbdir", screen]
            self._run(stack, [*command, "-nolisten", "tcp"], dict(os.environ), pass_fds=(write,))
        finally:
            os.close(write)
        with open(read, "rb") as pipe:
            number = pipe.readline().strip().decode()
        if not number:
            raise RuntimeError("Xvfb did not start")
        file = stack.enter_context(open(screen / "Xvfb_screen0", "rb"))
        self._memory = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        header = struct.unpack(">25I", self._memory[:100])  # of an XWD file
        self._offset = header[0] + 12 * header[19]  # behind the header and the colours
        self._stride = header[12]
        return f":{number}"

    def _write_world(self, folder: Path, side: int) -> None:
        mod = self._world / "worldmods" / "farworld"
        mod.mkdir(parents=True)
        script = importlib.resources.files("farworld.envs.engines").joinpath("luanti.lua").read_text(encoding="utf-8")
        (mod / "init.lua").write_text(script, encoding="utf-8")
        (mod / "mod.conf").write_text("name = farworld\n")
        stores = "".join(f"{name} = sqlite3\n" for name in ("backend", "player_backend", "auth_backend"))
        (self._world / "world.mt").write_text(f"gameid = {self._game_id}\nload_mod_farworld = true\n{stores}")
        settings = {
            **self._settings,
            "bind_address": "127.0.0.1",
            "screen_w": side,
            "screen_h": side,
            "creative_mode": "true",
            "enable_damage": "false",
            "enable_sound": "false",
            "fps_max": 60,
            "fps_max_unfocused": 60,
            "pause_on_lost_focus": "false",
            "mouse_sensitivity": 0.2,
            "view_bobbing_amount": 0,
            "dedicated_server_step": 0.05,
            "show_statusline_on_connect": "false",
        }
        (folder / "conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))

    def _focus(self, environment: dict[str, str]) -> None:
        found = subprocess.run(
            ["xdotool", "search", "--onlyvisible", "--name", "."],
            env=environment, capture_output=True, text=True, check=False,
        ).stdout.split()  # fmt: skip
        if not found:
            raise RuntimeError("Luanti opened no window")
        self._send(f"windowfocus {found[-1]}")
        time.sleep(0.3)

    def _calibrate(self) -> float:
        """How far the mouse turns the player; it depends on the screen's size and its density."""
        pixels = 20
        before = self._look()
        self._send(f"mousemove_relative -- {pixels} 0")
        time.sleep(0.4)
        turned = math.degrees((before - self._look()) % (2 * math.pi))
        if not 0.1 < turned < 180:
            raise RuntimeError(f"Luanti does not follow the mouse: {pixels} pixels turned it by {turned:.1f} degrees")
        return pixels / turned

    def _look(self) -> float:
        return float(self._ask("look").split()[0])

    # Talking to it

    def _ask(self, question: str) -> str:
        """What the mod answers."""
        self._questions += 1
        number = str(self._questions)
        temporary = self._world / "ask.new"
        temporary.write_text(f"{number} {question}")
        temporary.replace(self._world / "ask")
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self._check_alive()
            with contextlib.suppress(FileNotFoundError):
                found, _, text = (self._world / "answer").read_text().partition(" ")
                if found == number:
                    return text
            time.sleep(0.02)
        raise TimeoutError(f"Luanti did not answer in {START_SECONDS:.0f} seconds; its log ends: {self._last_words()}")

    def _check_alive(self) -> None:
        if self._client is not None and self._client.poll() is not None:
            raise RuntimeError(f"Luanti ended with exit code {self._client.returncode}: {self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            return lines[-1] if lines else "nothing"
        return "nothing"

    def _send(self, line: str) -> None:
        self._keys.write(f"{line}\n".encode())
        self._keys.flush()

    def _hold(self, wanted: tuple[str, ...]) -> None:
        """Let exactly these keys and buttons be down."""
        for key in self._held:
            if key not in wanted:
                self._send(f"mouseup {key[-1]}" if key.startswith("button") else f"keyup {key}")
        for key in wanted:
            if key not in self._held:
                self._send(f"mousedown {key[-1]}" if key.startswith("button") else f"keydown {key}")
        self._held = wanted

    def _see(self) -> np.ndarray:
        side = self._size * self._scale
        raw = np.frombuffer(self._memory, np.uint8, self._stride * side, self._offset)
        picture = raw.reshape(side, self._stride // 4, 4)[:, :side, 2::-1]  # blue, green, red, nothing
        blocks = picture.reshape(self._size, self._scale, self._size, self._scale, 3)
        return blocks.mean((1, 3), dtype=np.float32).round().astype(np.uint8)

    # Playing

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Go to another place."""
        super().reset(seed=seed)
        if self._client is None:
            self._start()
        self._hold(())
        x, z = self.np_random.integers(-MAX_DISTANCE, MAX_DISTANCE, 2)
        yaw, daytime = self.np_random.uniform((0, 0.27), (2 * math.pi, 0.73))  # 0.5 is noon
        self._ask(f"place {x} {z} {yaw:.4f} {daytime:.4f}")
        time.sleep(SETTLE_SECONDS)
        self._next_tick = time.monotonic() + self._period
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold the keys of an action until the next tick."""
        if self._client is None:
            raise RuntimeError("step() before the first reset(); call reset() first")
        _, _, keys, right, down = _ACTIONS[int(action)]
        self._hold(keys)
        if right or down:
            pixels = round(self._turn_degrees * self._pixels_per_degree)
            self._send(f"mousemove_relative -- {right * pixels} {down * pixels}")
        # A caller that was late puts off this frame and the ones after it: an action lasts half a period or longer.
        self._next_tick = max(self._next_tick, time.monotonic() + self._period / 2)
        time.sleep(max(0.0, self._next_tick - time.monotonic()))
        self._next_tick += self._period
        self._check_alive()
        return self._see(), 0.0, False, False, {}

    def render(self) -> np.ndarray:
        """What is seen now."""
        if self._client is None:
            raise RuntimeError("render() before the first reset(); call reset() first")
        return self._see()

    def close(self) -> None:
        """End the game and its display, and remove its world."""
        self._client = None
        self._closing.close()


def _end(process: subprocess.Popen) -> None:
    """End a process, which may have ended already."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
