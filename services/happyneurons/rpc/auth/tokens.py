"""Bearer tokens from a file that holds their hashes::

    - {name: alice, role: operator, projects: [fly, mouse], sha256: 3f1c…, expires: 2027-01-31}

Tokens are 256 random bits (`hpn security token`), so a plain SHA-256 is as good as a slow hash:
nobody can try them all. Passwords do not belong here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from happyneurons.errors import UnauthenticatedError, UserError
from happyneurons.rpc.auth.config import Grant, violations
from happyneurons.rpc.auth.files import Reloaded, read_bytes
from happyneurons.rpc.auth.principal import Principal

PREFIX = "hpn_"


class TokenEntry(Grant):
    """One token of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1, max_length=128, description="Who uses it; kept with what is decided")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the token")
    expires: date | None = Field(None, description="Last day on which it counts (UTC)")

    def ends(self) -> float | None:
        """When it expires, in seconds since 1970."""
        return None if self.expires is None else datetime.combine(self.expires, time.max, UTC).timestamp()


class _TokenFile(BaseModel):
    tokens: list[TokenEntry]


class StaticTokens:
    """The tokens of a file, which is read again when it changes."""

    def __init__(self, path: Path, clock: Any = None) -> None:
        """Raises UserError with the places of all mistakes."""
        self._clock = clock or (lambda: datetime.now(UTC).timestamp())
        self._entries: Reloaded[Mapping[str, TokenEntry]] = Reloaded([path], lambda: read_tokens(path))

    def principal(self, token: str) -> Principal | None:
        """Whose token it is; None for one that is not in the file. Raises UnauthenticatedError for an expired one."""
        entry = self._entries.get().get(digest(token))
        if entry is None:
            return None
        ends = entry.ends()
        if ends is not None and self._clock() > ends:
            raise UnauthenticatedError(f"this token of {entry.name} expired on {entry.expires}")
        return entry.principal(entry.name, "token")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(path: Path) -> dict[str, TokenEntry]:
    """Entries by hash. Raises UserError."""
    try:
        document = yaml.safe_load(read_bytes(path)) or []
        entries = _TokenFile.model_validate({"tokens": document}).tokens
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"tokens file {path}: not valid YAML") from None
    except ValidationError as error:
        found = violations(error)
        raise UserError(f"tokens file {path}: " + "; ".join(f"{p}: {e}" for p, e in found), found) from None
    known = {entry.sha256: entry for entry in entries}
    if len(known) < len(entries):
        raise UserError(f"tokens file {path}: a sha256 stands there twice")
    return known


def make_token(path: Path | None, name: str, role: str, projects: list[str], expires: date | None) -> tuple[str, str]:
    """A new token and its line for a tokens file, to which it is added if one is given. Raises UserError."""
    token = PREFIX + secrets.token_urlsafe(32)
    document: dict[str, Any] = {"name": name, "role": role, "projects": projects, "sha256": digest(token)}
    if expires is not None:
        document["expires"] = expires
    line = "- " + yaml.safe_dump(document, default_flow_style=True, sort_keys=False, width=10_000).strip() + "\n"
    try:
        TokenEntry.model_validate(document)
    except ValidationError as error:
        found = violations(error)
        raise UserError("; ".join(f"{p}: {e}" for p, e in found), found) from None
    if path is not None:
        _append(path, line)
    return token, line


def _append(path: Path, line: str) -> None:
    known = read_tokens(path) if path.exists() else {}
    before = path.read_text() if known else ""  # an empty list, `[]`, is no beginning
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(before + ("" if not before or before.endswith("\n") else "\n") + line)
        read_tokens(new)
        new.replace(path)  # in one step: the server may be reading it
    except OSError as error:
        raise UserError(f"tokens file {path}: {error.strerror}") from None
    finally:
        new.unlink(missing_ok=True)
