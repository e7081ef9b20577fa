"""The action vocabulary: what each action is called and which keys trigger it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

ACTION_TIMING = "after_frame"  # action t is taken after seeing frame t and produces frame t + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One action of a vocabulary.

    Attributes:
        name: what the action is called, unique in its vocabulary.
        keys: the keys held together (a chord), named as pygame names them; empty means no key.
    """

    name: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ActionVocabulary:
    """The discrete actions of a world; an action's index is its place in the tuple."""

    actions: tuple[Action, ...]

    def __post_init__(self) -> None:
        names = self.names
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"an action vocabulary needs one or more different names, got {list(names)}")

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in index order."""
        return tuple(action.name for action in self.actions)

    @property
    def noop(self) -> int | None:
        """Index of the action that needs no key, or None if the world has none."""
        return next((index for index, action in enumerate(self.actions) if not action.keys), None)

    def from_keys(self, held: Collection[str]) -> int | None:
        """The action for the keys held now: the longest chord whose keys are all held.

        Ties go to the lower index. With no match the result is the noop, or None without one.
        """
        matches = [i for i, action in enumerate(self.actions) if action.keys and set(held).issuperset(action.keys)]
        return max(matches, key=lambda i: (len(self.actions[i].keys), -i)) if matches else self.noop

    def check(self, action: object) -> int:
        """Return the action as an int, or raise ValueError naming the range."""
        if isinstance(action, (int, np.integer)) and not isinstance(action, bool) and 0 <= action < len(self):
            return int(action)
        raise ValueError(f"action must be an integer in [0, {len(self) - 1}] ({', '.join(self.names)}), got {action!r}")

    def index(self, name: str) -> int:
        """The index of a name, or ValueError naming the known ones."""
        if name not in self.names:
            raise ValueError(f"unknown action {name!r}; this world knows {', '.join(self.names)}")
        return self.names.index(name)

    def to_json(self) -> list[dict]:
        """A JSON-ready list of {name, keys}."""
        return [{"name": action.name, "keys": list(action.keys)} for action in self.actions]

    @classmethod
    def from_json(cls, rows: Sequence[dict]) -> ActionVocabulary:
        """The inverse of to_json."""
        return cls(tuple(Action(name=row["name"], keys=tuple(row.get("keys", ()))) for row in rows))


NO_ACTIONS = ActionVocabulary((Action(name="none"),))  # of videos that nobody acts in: time goes on
