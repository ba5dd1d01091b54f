"""How a client gets into a secured server: CA, own certificate, token.

From arguments, from a site's entry in sites.yaml, or from the environment::

    HPN_TLS_CA           CA of the server's certificate: a file, or `system` for the well-known ones
    HPN_TLS_CERT, _KEY   own certificate and key, where the server asks for one
    HPN_TLS_SERVER_NAME  name in the server's certificate, where it is not the one in the address
    HPN_TOKEN_FILE       file of the token, read again when it changes
    HPN_TOKEN            the token itself
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc

from happyneurons.errors import UserError

SYSTEM = "system"


@dataclass(frozen=True)
class Access:
    """Nothing given: a server without access control, as on 127.0.0.1."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # as part of sites.yaml

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""
    token_file: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"Access(ca={self.ca!r}, cert={self.cert!r}, token={'…' if self.token or self.token_file else None})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Access:
        """What the environment says; see above."""
        names = {
            "ca": "HPN_TLS_CA", "cert": "HPN_TLS_CERT", "key": "HPN_TLS_KEY", "server_name": "HPN_TLS_SERVER_NAME",
            "token_file": "HPN_TOKEN_FILE", "token": "HPN_TOKEN",
        }  # fmt: skip
        return cls(**{field: environment.get(name, "") for field, name in names.items()})

    @property
    def secured(self) -> bool:
        """A token or a certificate is for a server with TLS, so one of them is enough to ask for it."""
        return bool(self.ca or self.cert or self.token or self.token_file)

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A channel to `host:port`. Raises UserError for files that cannot be read."""
        if not self.secured:
            return grpc.insecure_channel(address, options=options)
        if bool(self.cert) != bool(self.key):
            raise UserError("a client certificate needs its key, and a key its certificate: give both")
        ca = None if self.ca in ("", SYSTEM) else _read(self.ca)
        key, cert = (_read(self.key), _read(self.cert)) if self.cert else (None, None)
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        if self.token or self.token_file:
            plugin = _Token(self.token, Path(self.token_file) if self.token_file else None)
            token = grpc.metadata_call_credentials(plugin, "token")
            credentials = grpc.composite_channel_credentials(credentials, token)
        if self.server_name:
            options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
        return grpc.secure_channel(address, credentials, options=options)


class _Token(grpc.AuthMetadataPlugin):
    """Puts the token beside each call. A file is read for each: identity providers renew theirs within minutes."""

    def __init__(self, token: str, path: Path | None) -> None:
        self._token, self._path = token, path
        self._take()  # errors now, not at the first call

    def _take(self) -> str:
        token = (self._token if self._path is None else _read(str(self._path)).decode(errors="replace")).strip()
        if not token or not token.isascii() or any(c.isspace() for c in token):
            raise UserError(f"{self._path or 'HPN_TOKEN'}: expected a token, one word")
        return token

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            callback((("authorization", f"Bearer {self._take()}"),), None)
        except UserError as error:
            callback((), error)


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


PLAIN = Access()
"""For a server that this process itself has started, whatever the environment says."""
