"""What was written stays written, also when the power goes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, by: str = "") -> Iterator[Path]:
    """A path beside it to write to: once the block ends what lies there is `path`, whole and also after a power cut.

    Where the block or the disk fails the old file stays as it was and nothing is left beside it. What a killed process
    leaves there, `.<name>.*.tmp`, tells by whom it was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{by}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def replace(path: Path, parts: Iterable[bytes], by: str = "") -> None:
    """Have a file hold these bytes, as `replacing` does it."""
    with replacing(path, by) as temporary, temporary.open("wb") as file:
        file.writelines(parts)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody else is inside for this lock file; a file system that knows no locks lets everybody in."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except OSError as error:
            mine = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        yield mine
    finally:
        os.close(descriptor)
