"""Locks on files, by which processes of satdiff keep out of each other's way."""

import errno
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

_KNOWS_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # as some network disks


def take_lock(stack: ExitStack, path: Path) -> BinaryIO | None:
    """Lock a file, which is made if it is not there, until a stack is closed; a disk without locks is gone along with.

    Returns:
        The file, open; None where the system has no such locks (Windows).

    Raises:
        BlockingIOError: Another process holds the lock.
        FileNotFoundError: The file's folder is not there.
    """
    try:
        import fcntl
    except ImportError:
        return None
    stream = stack.enter_context(path.open("ab"))
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _KNOWS_NO_LOCKS:
            raise
    return stream
