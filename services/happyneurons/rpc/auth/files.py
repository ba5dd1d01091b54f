"""Files that are read again when they change: certificates, tokens and keys are renewed while a server runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from happyneurons.errors import HappyError, UserError

log = logging.getLogger("happyneurons.rpc.auth")

LOOK_S = 1.0
"""How soon a change is noticed."""

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int], ...]


class Reloaded(Generic[T]):
    """What `read` makes of some files. A change that cannot be read is logged; what was known before stays.

    Kubernetes and cert-manager replace a folder of links in one step, so files that belong together
    (a certificate and its key) are read together. Thread-safe.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], look_s: float = LOOK_S) -> None:
        """Raises UserError if the files cannot be read now."""
        self._paths, self._read, self._look_s = tuple(paths), read, look_s
        self._lock = threading.Lock()
        self._stamp = self._stat()
        self._looked = time.monotonic()
        self._value = read()

    def get(self) -> T:
        """The files' content, at most `look_s` old."""
        with self._lock:
            if time.monotonic() - self._looked >= self._look_s:
                self._looked = time.monotonic()
                self._look()
            return self._value

    def _look(self) -> None:
        try:
            stamp = self._stat()
            if stamp == self._stamp:
                return
            value = self._read()
        except HappyError as error:
            log.error("%s; what was read before goes on to count", error)
            return
        self._stamp, self._value = stamp, value
        log.warning("read again: %s", ", ".join(str(path) for path in self._paths))

    def _stat(self) -> Stamp:
        try:
            found = [path.stat() for path in self._paths]
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from None
        return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in found)


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
