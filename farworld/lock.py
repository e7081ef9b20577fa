"""Locks on files, which the system frees even if their process is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

LOCK_FILE = ".lock"
_LOCKED_BYTE = 1 << 30  # Windows locks bytes, and nobody may read them meanwhile: one far behind any content


def lock_folder(directory: Path, *, wait: bool = False) -> IO[bytes]:
    """Take the folder's lock; closing the file gives it back.

    Args:
        directory: the folder.
        wait: for another that has it to give it back.

    Raises:
        ValueError: another has it.
        OSError: the file system has no locks.
    """
    file = open(directory / LOCK_FILE, "ab")  # noqa: SIM115 - held until the caller closes it
    try:
        if lock_file(file, wait=wait):
            return file
        raise ValueError(f"another process is writing into {directory}; wait for it to end")
    except BaseException:
        file.close()
        raise


def lock_file(file: IO[bytes], *, wait: bool = False) -> bool:
    """Take the lock on an open file, which closing it gives back; False if another has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
                    return True
                except OSError:  # LK_LOCK gives up after ten seconds
                    if not wait:
                        return False
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise OSError(
            error.errno,
            f"{file.name} cannot be locked ({error.strerror}): expected a file system with locks; write to a local "
            "disk, and copy it from there",
        ) from error
    return True
