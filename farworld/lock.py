"""One writer for each folder: a lock that the system frees even if its process is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

LOCK_FILE = ".lock"


def lock_folder(directory: Path) -> IO[bytes]:
    """Take the folder's lock; closing the file gives it back.

    Raises:
        ValueError: another process has it.
    """
    file = open(directory / LOCK_FILE, "ab")  # noqa: SIM115 - held until the writer closes
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ValueError(f"another process is writing into {directory}; wait for it to end") from error
    return file
