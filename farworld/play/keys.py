"""From keys to actions: what a person who holds and taps keys wants next."""

from __future__ import annotations

from collections.abc import Collection

from farworld.actions import ActionVocabulary

REWIND_KEY = "backspace"  # where the world leaves it free


class Keys:
    """The keys that are held, and the taps that no frame has answered yet.

    The newest key rules: who walks and presses the jump key jumps, and walks on afterwards. A key that went down
    and up between two frames still counts for one frame, and of two such taps the older one comes first.

    Attributes:
        known: the keys that actions have.
        idle: the action while no key asks for one; None is none at all.
    """

    def __init__(self, vocabulary: ActionVocabulary) -> None:
        self.vocabulary = vocabulary
        self.idle = vocabulary.noop
        self.known = tuple(dict.fromkeys(key for action in vocabulary.actions for key in action.keys))
        self._held: list[str] = []  # oldest first
        self._unanswered: list[str] = []  # went down since the last action, oldest first

    def press(self, key: str) -> None:
        """A key went down; one that the vocabulary does not use is ignored."""
        if key not in self.known or key in self._held:
            return
        self._held.append(key)
        if key not in self._unanswered:
            self._unanswered.append(key)

    def release(self, key: str) -> None:
        """A key went up."""
        if key in self._held:
            self._held.remove(key)

    def hold(self, keys: Collection[str]) -> None:
        """Let exactly these keys be pressed, whatever was before; the first has priority."""
        self.release_all()
        for key in keys:
            self.press(key)

    def release_all(self) -> None:
        """All keys went up, and taps are forgotten."""
        self._held.clear()
        self._unanswered.clear()

    def forget_taps(self) -> None:
        """Only what is held counts from here."""
        self._unanswered.clear()

    def take_action(self) -> int | None:
        """The action for the next frame; None when no key asks for one and the world has no idle action.

        It is the longest chord of pressed keys that holds the oldest unanswered tap, or else the newest held key.
        """
        down = {*self._held, *self._unanswered}
        by_priority = [*self._unanswered, *reversed(self._held)]
        chords = [chord for key in by_priority if (chord := self._longest_chord(key, down)) is not None]
        if not chords:
            self._unanswered.clear()
            return self.idle
        answered = self.vocabulary.actions[chords[0]].keys
        self._unanswered = [
            key for key in self._unanswered if key not in answered and self._longest_chord(key, down) is not None
        ]
        return chords[0]

    def _longest_chord(self, key: str, down: set[str]) -> int | None:
        """The action with the most keys, all of them down, `key` among them; ties go to the lower index."""
        actions = self.vocabulary.actions
        matches = [i for i, action in enumerate(actions) if key in action.keys and down.issuperset(action.keys)]
        return max(matches, key=lambda i: (len(actions[i].keys), -i), default=None)
