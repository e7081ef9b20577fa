"""What is drawn around the picture: the bar with figures and keys, a message, the page of help."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pygame

BACKGROUND = (16, 17, 21)
TEXT = (226, 228, 233)
FAINT = (128, 132, 142)
ACCENT = (255, 196, 84)
WARNING = (255, 118, 96)
KEY = (44, 47, 55)
RECORDING = (235, 64, 52)
BAR_HEIGHT = 56  # pixels
MARGIN = 10
KEY_SIDE = 20
GAP = 5

_ARROWS = {  # corners of a triangle in a unit square
    "up": ((0.5, 0.3), (0.75, 0.68), (0.25, 0.68)),
    "down": ((0.5, 0.7), (0.75, 0.32), (0.25, 0.32)),
    "left": ((0.3, 0.5), (0.68, 0.25), (0.68, 0.75)),
    "right": ((0.7, 0.5), (0.32, 0.25), (0.32, 0.75)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What the bar says.

    Attributes:
        fps: frames shown a second; None until it is measured.
        target_fps: how many it should be.
        frame_ms: what a frame takes; None until it is measured.
        num_frames: since the start.
        figures: more of them.
        recorded: what is stored so far, shown beside a red dot; empty where nothing is recorded.
        action: what produced the frame.
    """

    fps: float | None
    target_fps: float
    frame_ms: float | None
    num_frames: int
    figures: tuple[str, ...] = ()
    recorded: str = ""
    action: str


class Hud:
    """Draws with two fonts that are made once."""

    def __init__(self) -> None:
        """Make the fonts; pygame must be initialised."""
        self._font = pygame.font.Font(None, 22)
        self._small = pygame.font.Font(None, 19)

    def draw_bar(self, screen: pygame.Surface, status: Status, keys: Sequence[str], lit: Collection[str]) -> None:
        """Draw the figures, and under them the world's keys, those of the last action lit."""
        width, top = screen.get_width(), screen.get_height() - BAR_HEIGHT
        screen.fill(BACKGROUND, (0, top, width, BAR_HEIGHT))
        action = self._font.render(status.action.replace("_", " "), True, ACCENT)
        self._draw_figures(screen, status, top + 8, width - action.get_width() - 2 * MARGIN)
        screen.blit(action, (width - MARGIN - action.get_width(), top + 8))
        hint = self._small.render("F1 help", True, FAINT)
        hint_left = width - MARGIN - hint.get_width()
        screen.blit(hint, (hint_left, top + 34))
        left = MARGIN
        for key in keys:
            left = self._draw_key(screen, key, left, top + 29, key in lit, hint_left - GAP)

    def _draw_figures(self, screen: pygame.Surface, status: Status, top: int, right: int) -> None:
        """The figures from left to right, as many as fit."""
        slow = status.fps is not None and status.fps < 0.9 * status.target_fps
        figures = (  # and the widest that they get, so that they do not jump about
            (f"{'-' if status.fps is None else f'{status.fps:.1f}'} fps", "888.8 fps", WARNING if slow else TEXT),
            (f"{'-' if status.frame_ms is None else f'{status.frame_ms:.0f}'} ms", "8888 ms", TEXT),
            (f"frame {status.num_frames}", "frame 88888", TEXT),
            *((text, text, TEXT) for text in status.figures),
        )
        left = MARGIN
        if status.recorded:
            left = self._draw_recorded(screen, status.recorded, left, top, right)
        for text, widest, colour in figures:
            drawn = self._font.render(text, True, colour)
            if left + drawn.get_width() > right:
                return
            screen.blit(drawn, (left, top))
            left += max(drawn.get_width(), self._font.size(widest)[0]) + MARGIN

    def _draw_recorded(self, screen: pygame.Surface, recorded: str, left: int, top: int, right: int) -> int:
        """A red dot, and what is stored if it fits; where the next figure begins."""
        drawn = self._font.render(f"{recorded} stored", True, TEXT)
        radius = 6
        pygame.draw.circle(screen, RECORDING, (left + radius, top + drawn.get_height() // 2 - 1), radius)
        left += 2 * radius + GAP
        if left + drawn.get_width() > right:
            return left
        screen.blit(drawn, (left, top))
        return left + drawn.get_width() + 2 * MARGIN

    def _draw_key(self, screen: pygame.Surface, key: str, left: int, top: int, lit: bool, right: int) -> int:
        """One key cap, unless it does not fit; where the next one begins."""
        label = self._small.render(key, True, BACKGROUND if lit else TEXT)
        width = KEY_SIDE if key in _ARROWS else max(KEY_SIDE, label.get_width() + 10)
        if left + width > right:
            return left
        box = pygame.Rect(left, top, width, KEY_SIDE)
        pygame.draw.rect(screen, ACCENT if lit else KEY, box, border_radius=4)
        if key in _ARROWS:
            corners = [(left + x * KEY_SIDE, top + y * KEY_SIDE) for x, y in _ARROWS[key]]
            pygame.draw.polygon(screen, BACKGROUND if lit else TEXT, corners)
        else:
            screen.blit(label, label.get_rect(center=box.center))
        return left + width + GAP

    def draw_message(self, screen: pygame.Surface, message: str, area: pygame.Rect) -> None:
        """Draw a line on a dark plate at the top of the picture."""
        text = self._font.render(message, True, TEXT)
        plate = pygame.Surface((text.get_width() + 24, text.get_height() + 14), pygame.SRCALPHA)
        pygame.draw.rect(plate, (*BACKGROUND, 210), plate.get_rect(), border_radius=8)
        plate.blit(text, (12, 7))
        screen.blit(plate, plate.get_rect(midtop=(area.centerx, area.top + 12)))

    def draw_help(self, screen: pygame.Surface, title: str, rows: Sequence[tuple[str, str]], area: pygame.Rect) -> None:
        """Draw a page of keys and what they do over the picture, in as many columns as its height asks for."""
        line, column = 22, 236
        shade = pygame.Surface(area.size, pygame.SRCALPHA)
        shade.fill((*BACKGROUND, 222))
        screen.blit(shade, area)
        screen.blit(self._font.render(title, True, ACCENT), (area.left + 24, area.top + 20))
        per_column = max(1, (area.height - 70) // line)
        for i, (key, meaning) in enumerate(rows):
            left = area.left + 24 + i // per_column * column
            top = area.top + 54 + i % per_column * line
            screen.blit(self._small.render(key, True, TEXT), (left, top))
            screen.blit(self._small.render(meaning, True, FAINT), (left + 96, top))
