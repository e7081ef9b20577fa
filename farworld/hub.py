"""What the Hugging Face hub's client raises, and how to say it in one line."""

from __future__ import annotations

import re


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when it cannot fetch or send a file."""
    from huggingface_hub import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    # Connections that fail raise errors of the HTTP library that the hub uses (which one depends on its version).
    return (OSError, *kinds, *errors.HfHubHTTPError.__bases__)


def reason_of(error: Exception) -> str:
    """An error in one line: its first, and the next one where that only has a status, such as "404 Client Error."."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if re.fullmatch(r"\d{3} (Client|Server) Error\.?( \(.*\))?", lines[0]) else 1])
