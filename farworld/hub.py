"""What the Hugging Face hub's client raises, and how to say it in one line."""

from __future__ import annotations


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when it cannot fetch or send a file."""
    from huggingface_hub import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    # Connections that fail raise errors of the HTTP library that the hub uses (which one depends on its version).
    return (OSError, *kinds, *errors.HfHubHTTPError.__bases__)


def reason_of(error: Exception) -> str:
    """An error's first line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
