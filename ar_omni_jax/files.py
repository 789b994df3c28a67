"""Atomic files, and folders that one process at a time may write."""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # what `flock` says on file systems without


def replace_file(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader or a crash sees the old file or the new one, never a part. Where the
    system refuses (a full disk), the OSError names the file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # other hosts have our pid too
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # on a full disk half a file would stand in the way of the next try
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Keeps a second process out of `folder` (BlockingIOError) until this one leaves or ends, however it ends.

    Does nothing on file systems that have no locks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "another process is writing here; wait for it, stop it, or give another --workdir"
            raise BlockingIOError(error.errno, message, str(folder)) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)
