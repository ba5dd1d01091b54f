"""A security file as a server uses it."""

from __future__ import annotations

from pathlib import Path

import grpc

from happyneurons.rpc.auth.certificates import ServerCertificates
from happyneurons.rpc.auth.config import SecurityConfig, load_security
from happyneurons.rpc.auth.guard import Guard
from happyneurons.store.documents import Store
from happyneurons.store.roots import Roots

LOOPBACK = ("127.", "localhost", "[::1]", "unix:", "ip6-localhost")


class Security:
    """What a server needs of a security file. Raises UserError for whatever cannot work."""

    def __init__(self, config: SecurityConfig) -> None:
        self.config = config
        Roots(config.allowed_roots)  # mistakes in it now, before anything is opened
        self._certificates = ServerCertificates(config.tls) if config.tls else None
        self.guard = Guard(config)

    @classmethod
    def load(cls, path: Path) -> Security:
        return cls(load_security(path))

    def credentials(self) -> grpc.ServerCredentials | None:
        """None where a proxy in front ends TLS."""
        return self._certificates.credentials() if self._certificates else None

    @property
    def metrics_tls(self) -> dict[str, str] | None:
        """Files for the server of metrics; None: plain HTTP."""
        tls = self.config.tls
        if tls is None or not self.config.metrics_tls:
            return None
        files = {"certfile": str(tls.cert), "keyfile": str(tls.key)}
        return files | ({"client_cafile": str(tls.client_ca)} if tls.client_ca else {})

    def roots(self, store: Store) -> Roots:
        """Where jobs may read: the store and `allowed_roots`. Raises UserError."""
        return Roots([store.uri, *self.config.allowed_roots])

    def options(self) -> list[tuple[str, int]]:
        """Channel arguments for the limits of the file."""
        limits = self.config.limits
        return [
            ("grpc.max_receive_message_length", limits.message_bytes),
            ("grpc.max_connection_age_ms", limits.connection_age_s * 1000),
            ("grpc.max_connection_age_grace_ms", limits.connection_grace_s * 1000),
            # Calls beyond this wait in their client; those that get here are refused one by one.
            ("grpc.max_concurrent_streams", 2 * (limits.streams_per_client + limits.calls_per_client)),
        ]

    def close(self) -> None:
        self.guard.close()


def open_to_strangers(address: str) -> bool:
    """Whether an address can be reached from other machines."""
    return not address.startswith(LOOPBACK)
