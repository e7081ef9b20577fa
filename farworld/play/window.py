"""The window: pygame events to keys, frames to the screen, at the world's own pace."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

try:
    import pygame
except ImportError as error:
    raise ImportError('the window needs pygame-ce: pip install "pygame-ce>=2.5.6", or play --headless') from error

from farworld.play.hud import BACKGROUND, BAR_HEIGHT, Hud, Status
from farworld.play.keys import REWIND_KEY
from farworld.play.player import NO_REWIND, Player

if TYPE_CHECKING:
    from farworld.video import GifWriter, VideoWriter

NO_DISPLAY = "use --headless --script KEYS.txt --frames N --save out.mp4"
MEASURED_SECONDS = 2.0  # what the figures in the bar are about
MESSAGE_SECONDS = 1.5


def require_display() -> None:
    """Make sure that a window can open.

    Raises:
        ValueError: there is no display; the message says how to play without.
        ImportError: the old pygame is installed in place of pygame-ce.
    """
    if not getattr(pygame, "IS_CE", 0):
        raise ImportError(
            "pygame is installed in place of pygame-ce, and both share one folder: "
            'pip uninstall -y pygame pygame-ce && pip install "pygame-ce>=2.5.6"'
        )
    wanted = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in wanted):
        raise ValueError(f"no display (DISPLAY and WAYLAND_DISPLAY are not set); {NO_DISPLAY}")
    try:
        pygame.display.init()
    except pygame.error as error:
        raise ValueError(f"no display ({error}); {NO_DISPLAY}") from error


class Window:
    """A resizable window that plays; use as a context manager.

    The picture is enlarged by a whole number. Events are handled as they come, also between frames; the keys
    are read right before a step, so that from a key to its picture it takes one step and no frame more.
    """

    def __init__(
        self,
        player: Player,
        *,
        size: int = 640,
        frames_per_second: float | None = None,
        video: VideoWriter | GifWriter | None = None,
    ) -> None:
        """Open it.

        Args:
            player: what is played.
            size: the picture's shorter side in pixels, rounded down to a whole number of its own.
            frames_per_second: the pace; None is the player's own.
            video: takes every frame that is shown, if given.

        Raises:
            ValueError: there is no display.
        """
        require_display()
        self.player = player
        self.frames_per_second = frames_per_second or player.frames_per_second
        self.video = video
        self.running = True
        self.paused = False
        self.show_hud = True
        self.show_help = False
        self._rewind_held = self._rewind_tapped = False  # its key is down; it went down, and no frame has answered yet
        self._rewound, self._rewind_text = 0, ""  # frames since then, and what is said about them
        self._redraw = True
        self._message, self._message_until = "", 0.0
        self._shown: deque[tuple[float, float]] = deque()  # when a frame was shown, and what it took in ms
        self._commands = self._free_commands()
        height, width = player.frame.shape[:2]
        scale = max(1, size // min(height, width))
        pygame.font.init()
        self._hud = Hud()
        try:
            self._screen = pygame.display.set_mode((width * scale, height * scale + BAR_HEIGHT), pygame.RESIZABLE)
        except pygame.error as error:
            raise ValueError(f"no display ({error}); {NO_DISPLAY}") from error
        pygame.display.set_caption(f"farworld - {player.name} (F1: keys)")
        pygame.display.set_icon(self._picture(32, 32))

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the window."""
        pygame.display.quit()

    def _free_commands(self) -> dict[str, Callable[[], None]]:
        """What the keys do that the world leaves free."""
        commands = {
            "p": self._toggle_pause,
            "n": self._single_step,
            ".": self._single_step,
            "r": self._reset,
            "tab": self._next_start,
            REWIND_KEY: self._start_rewind if self.player.can_rewind else self._refuse_rewind,
            "h": self._toggle_hud,
            "f1": self._toggle_help,
            "escape": self._quit,
            "q": self._quit,
        }
        if self.player.recorded:
            commands[REWIND_KEY] = self._discard
        return {key: command for key, command in commands.items() if key not in self.player.keys.known}

    def run(self) -> None:
        """Play until somebody quits."""
        period = 1.0 / self.frames_per_second
        self.draw()
        deadline = time.perf_counter() + period
        while self._wait_until(deadline):
            if (self._rewinding or not self.paused) and not self.show_help:
                self.show_next_frame()
            deadline = max(deadline + period, time.perf_counter())  # what was late is not caught up with

    def _wait_until(self, deadline: float) -> bool:
        """Handle events till the next frame is due; False when somebody has quit."""
        self.handle_events()
        while self.running and (remaining := deadline - time.perf_counter()) > 0:
            if self._redraw or self._message_is_over():
                self.draw()
                continue
            self._handle(pygame.event.wait(max(1, int(remaining * 1000))))
            self.handle_events()
        return self.running

    def handle_events(self) -> None:
        """Handle what has come since the last call."""
        for event in pygame.event.get():
            self._handle(event)

    def show_next_frame(self) -> None:
        """Step as the keys want it, or go back while the rewind key is down, and show the result."""
        began = time.perf_counter()
        if self._rewinding:
            self._rewound += self.player.rewind()
            back = f"« {self._rewound / self.player.frames_per_second:.1f} s"
            self._rewind_text = ", ".join(filter(None, (back, self.player.news)))
            self.draw()
            self._rewind_tapped = False
            self._redraw = not self._rewind_held
        else:
            self.player.tick()
            if self.player.news:
                self._say(self.player.news)
            self.draw()
            now = time.perf_counter()
            self._shown.append((now, (now - began) * 1000))
            while now - self._shown[0][0] > MEASURED_SECONDS and len(self._shown) > 2:
                self._shown.popleft()
        if self.video:
            self.video.write(self.player.frame)

    @property
    def _rewinding(self) -> bool:
        """Also for the shortest tap, till it has gone one frame back."""
        return self._rewind_held or self._rewind_tapped

    def draw(self) -> None:
        """Draw the picture and what is around it, and show it."""
        if self._message_is_over():
            self._message = ""
        screen, player = self._screen, self.player
        height, width = player.frame.shape[:2]
        room = screen.get_height() - (BAR_HEIGHT if self.show_hud else 0)
        scale = max(1, min(screen.get_width() // width, room // height))
        area = pygame.Rect(0, 0, width * scale, height * scale)
        area.center = (screen.get_width() // 2, max(0, room) // 2)
        screen.fill(BACKGROUND)
        screen.blit(self._picture(area.width, area.height), area)
        if self.show_help:
            page = pygame.Rect(0, 0, screen.get_width(), max(0, room))
            self._hud.draw_help(screen, f"{player.name}: keys", self._help_rows(), page)
        elif self._rewinding and self._rewind_text:
            self._hud.draw_message(screen, self._rewind_text, area)
        elif self.paused:
            self._hud.draw_message(screen, "paused (N: one step)" if "n" in self._commands else "paused", area)
        elif self._message:
            self._hud.draw_message(screen, self._message, area)
        if self.show_hud:
            lit = () if player.action is None else player.vocabulary.actions[player.action].keys
            self._hud.draw_bar(screen, self._status(), player.keys.known, lit)
        pygame.display.flip()
        self._redraw = False

    def _picture(self, width: int, height: int) -> pygame.Surface:
        """The player's frame at a size, its pixels kept sharp."""
        frame = self.player.frame
        surface = pygame.image.frombuffer(frame.tobytes(), (frame.shape[1], frame.shape[0]), "RGB")
        return pygame.transform.scale(surface, (width, height))

    def _status(self) -> Status:
        measured = len(self._shown) > 1
        player = self.player
        return Status(
            fps=(len(self._shown) - 1) / (self._shown[-1][0] - self._shown[0][0]) if measured else None,
            target_fps=self.frames_per_second,
            frame_ms=statistics.median(ms for _, ms in self._shown) if measured else None,
            num_frames=player.num_frames,
            figures=player.figures,
            recorded=player.recorded,
            action=player.action_name,
        )

    def _help_rows(self) -> list[tuple[str, str]]:
        """Keys and what they do: the world's own, then the window's."""
        meanings: dict[Callable[[], None], str] = {
            self._toggle_pause: "pause",
            self._single_step: "one step (paused)",
            self._reset: "start again",
            self._next_start: "next start",
            self._discard: "discard the take",
            self._start_rewind: "rewind",
            self._toggle_hud: "hide the bar",
            self._toggle_help: "this page",
            self._quit: "quit",
        }
        rows = [
            (" + ".join(action.keys) or "no key", action.name.replace("_", " "))
            for action in self.player.vocabulary.actions
        ]
        rows.append(("", ""))
        for command, meaning in meanings.items():
            keys = [key for key, value in self._commands.items() if value == command]
            if keys:
                rows.append((" or ".join(keys), meaning))
        return rows

    def _handle(self, event: pygame.event.Event) -> None:
        keys = self.player.keys
        if event.type == pygame.QUIT:
            self._quit()
        elif event.type == pygame.KEYDOWN:
            name = pygame.key.name(event.key).lower()
            if name in self._commands:
                self._commands[name]()
                self._redraw = True
            else:
                if self.paused:
                    keys.forget_taps()  # the last one counts for the next single step
                keys.press(name)
        elif event.type == pygame.KEYUP:
            name = pygame.key.name(event.key).lower()
            keys.release(name)
            if name == REWIND_KEY:
                self._rewind_held, self._redraw = False, True
        elif event.type == pygame.WINDOWFOCUSLOST:
            keys.release_all()  # the key goes up where we cannot see it
            self._stop_rewind()
        elif event.type in (pygame.VIDEORESIZE, pygame.WINDOWEXPOSED):
            self._screen = pygame.display.get_surface() or self._screen
            self._redraw = True

    def _say(self, message: str) -> None:
        self._message, self._message_until = message, time.perf_counter() + MESSAGE_SECONDS

    def _message_is_over(self) -> bool:
        return bool(self._message) and time.perf_counter() > self._message_until

    def _quit(self) -> None:
        self.running = False

    def _toggle_pause(self) -> None:
        self.paused = not self.paused
        self._shown.clear()
        self.player.keys.forget_taps()

    def _single_step(self) -> None:
        if self.paused:
            self.show_next_frame()

    def _start_rewind(self) -> None:
        if not self.show_help:
            self._rewind_held = self._rewind_tapped = True
            self._rewound, self._rewind_text = 0, ""
            self._shown.clear()

    def _stop_rewind(self) -> None:
        self._rewind_held = self._rewind_tapped = False

    def _refuse_rewind(self) -> None:
        self._say(NO_REWIND)

    def _reset(self) -> None:
        self._stop_rewind()
        self.player.reset()
        self._shown.clear()
        self._say(self.player.news)

    def _next_start(self) -> None:
        self._stop_rewind()
        self.player.next_start()
        self._shown.clear()
        self._say(self.player.news)

    def _discard(self) -> None:
        if self.player.discard():
            self._shown.clear()
            self._say(self.player.news)

    def _toggle_hud(self) -> None:
        self.show_hud = not self.show_hud

    def _toggle_help(self) -> None:
        self.show_help = not self.show_help
        self._shown.clear()
        self.player.keys.forget_taps()
