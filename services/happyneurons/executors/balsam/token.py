"""The access token of a Balsam server: from the environment or a file, read again when the file changes."""

from __future__ import annotations

import base64
import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from happyneurons.errors import UnavailableError
from happyneurons.executors.balsam.config import BalsamAccess


@dataclass(frozen=True)
class Token:
    """An access token, where it came from, and when it ends (UTC; None: not known)."""

    value: str
    source: str
    expiry: datetime | None = None

    def __repr__(self) -> str:  # a token must not get into a log
        return f"Token({self.source}, expires {self.expiry})"

    def expired(self) -> bool:
        return self.expiry is not None and self.expiry <= datetime.now(UTC)


class TokenSource:
    """Reads the token of an access; thread-safe. The environment comes before the file."""

    def __init__(self, access: BalsamAccess) -> None:
        self._variable, self._path = access.token_env, access.token_file.expanduser()
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._token: Token | None = None

    def read(self) -> Token:
        """The token as it is now. Raises UnavailableError if there is none: `balsam login` makes one meanwhile."""
        value = os.environ.get(self._variable, "").strip()
        if value:
            return Token(value, f"${self._variable}", _expiry_of(value))
        with self._lock:
            try:
                stat = self._path.stat()
                # `balsam login` writes in place: size and inode show what a coarse clock would hide.
                seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if self._token is None or seen != self._seen:
                    self._token, self._seen = _parse(self._path), seen
            except OSError as error:
                raise UnavailableError(
                    f"no Balsam token: {self._path}: {error.strerror}; run `balsam login`, or set ${self._variable}"
                ) from None
            return self._token

    def forget(self) -> None:
        """The token was refused: read the file again, whatever its times say."""
        with self._lock:
            self._seen = None


def _parse(path: Path) -> Token:
    text = path.read_text().strip()
    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        document = None
    if isinstance(document, dict) and document.get("token"):
        value, expiry = str(document["token"]), document.get("token_expiry")
        found = _utc(expiry) if isinstance(expiry, datetime) else _expiry_of(value)
        return Token(value, str(path), found)
    if not text or any(c.isspace() for c in text) or isinstance(document, dict):
        raise UnavailableError(f"{path}: holds no Balsam token; run `balsam login`")
    return Token(text, str(path), _expiry_of(text))


def _utc(time: datetime) -> datetime:
    """Balsam writes naive times and means UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _expiry_of(value: str) -> datetime | None:
    """When a JSON web token ends; read only, nothing is believed that the server does not check."""
    parts = value.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return datetime.fromtimestamp(float(claims["exp"]), UTC)
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None
