"""What goes wrong in reading and writing voxels, as errors that say where and whose fault it is."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence

from happyneurons.errors import HappyError, StoreAccessError, StoreError, TaskError
from happyneurons.store.damage import damaged


@contextlib.contextmanager
def reading(where: str, start_zyx: Sequence[int], stop_zyx: Sequence[int]) -> Iterator[None]:
    """Whatever a decoder raises becomes a TaskError that names the box: the data there is damaged."""
    try:
        yield
    except (HappyError, MemoryError):
        raise
    except OSError as error:
        # Decoders raise OSError without a number; the system's own errors have one.
        if error.errno is None:
            raise TaskError(damaged(where, start_zyx, stop_zyx, error)) from error
        raise system_error(where, error) from error
    except Exception as error:
        raise TaskError(damaged(where, start_zyx, stop_zyx, error)) from error


@contextlib.contextmanager
def writing(where: str) -> Iterator[None]:
    """The system's errors while a file is written: full, away, not ours."""
    try:
        yield
    except OSError as error:
        raise system_error(where, error) from error


def system_error(where: str, error: OSError) -> HappyError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreAccessError(f"{where}: access denied ({error.strerror}); check permissions")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{where}: no space left ({error.strerror}); make room, then start again: it goes on")
    return StoreError(f"{where}: {error.strerror or error}")
