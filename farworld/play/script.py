"""Scripts of keys: what to press when nobody sits at the keyboard.

One entry a line: `KEY[+KEY…] [xCOUNT]`, as in `up x10` or `up+left x3`. A `-` presses nothing, `action:NAME`
takes an action by its name, `backspace` goes a frame back, and whatever follows a `#` is a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from farworld.actions import ActionVocabulary
from farworld.play.keys import REWIND_KEY

ACTION_PREFIX = "action:"
_ENTRY = re.compile(r"(?P<what>.*?)(?:\s+x\s*(?P<count>\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A line of a script.

    Attributes:
        keys: held together; empty for none.
        action: taken whatever the keys; None to go by the keys.
        rewind: go back instead.
        count: for how many frames.
    """

    keys: tuple[str, ...] = ()
    action: int | None = None
    rewind: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class Script:
    """What to press, frame by frame."""

    entries: tuple[Entry, ...] = ()

    @property
    def num_frames(self) -> int:
        """Frames that the script lasts."""
        return sum(entry.count for entry in self.entries)

    @property
    def rewinds(self) -> bool:
        """Whether it goes back anywhere."""
        return any(entry.rewind for entry in self.entries)

    def per_frame(self, num_frames: int) -> Iterator[Entry]:
        """The entry of each frame; after the script's end nothing is pressed."""
        frames = (entry for entry in self.entries for _ in range(entry.count))
        for _ in range(num_frames):
            yield next(frames, Entry())


def parse_script(text: str, vocabulary: ActionVocabulary, source: str = "script") -> Script:
    """Read a script; a line that is no entry, or names an unknown key or action, is a ValueError with its number."""
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if line:
            try:
                entries.append(_parse_entry(line, vocabulary))
            except ValueError as error:
                raise ValueError(f"{source}, line {number}: {error}") from error
    return Script(tuple(entries))


def _parse_entry(line: str, vocabulary: ActionVocabulary) -> Entry:
    match = _ENTRY.fullmatch(line)
    assert match is not None  # every part of the pattern may be empty
    what, count = match["what"].strip(), int(match["count"] or 1)
    if count < 1:
        raise ValueError(f"a count must be 1 or more, got {line!r}")
    if what == "-":
        return Entry(count=count)
    if what.startswith(ACTION_PREFIX):
        return Entry(action=vocabulary.index(what.removeprefix(ACTION_PREFIX).strip()), count=count)
    known = dict.fromkeys(key for action in vocabulary.actions for key in action.keys)
    keys = tuple(key.strip().lower() for key in what.split("+"))
    if keys == (REWIND_KEY,) and REWIND_KEY not in known:
        return Entry(rewind=True, count=count)
    for key in keys:
        if key not in known:
            raise ValueError(
                f"unknown key {key!r} in {line!r}; this world's keys are {', '.join(known) or 'none'}, "
                f"- is no key, {REWIND_KEY} rewinds, and {ACTION_PREFIX}NAME takes one of {', '.join(vocabulary.names)}"
            )
    return Entry(keys=keys, count=count)


def read_script(path: Path, vocabulary: ActionVocabulary) -> Script:
    """Read a script's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `parse_script`, or the file is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no script {path.absolute()}; it is a text file with lines such as: up x10")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file in UTF-8: {error}") from error
    return parse_script(text, vocabulary, str(path))
