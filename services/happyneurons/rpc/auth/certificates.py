"""TLS of a server, with certificates that may be renewed while it runs, and callers known by theirs."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from happyneurons.errors import UnauthenticatedError, UserError
from happyneurons.rpc.auth.config import Certificate, Tls
from happyneurons.rpc.auth.files import Reloaded, read_bytes
from happyneurons.rpc.auth.principal import Principal


class ServerCertificates:
    """A server's certificate, key and CA of clients, as they stand in their files now."""

    def __init__(self, tls: Tls) -> None:
        """Raises UserError if they cannot be read or do not fit together."""
        self._tls = tls
        files = [tls.cert, tls.key, *([tls.client_ca] if tls.client_ca else [])]
        self._loaded: Reloaded[grpc.ServerCertificateConfiguration] = Reloaded(files, self._read)

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`; every handshake takes the files as they are then."""
        given = [self._loaded.get()]

        def current() -> grpc.ServerCertificateConfiguration | None:
            latest = self._loaded.get()
            if latest is given[0]:
                return None
            given[0] = latest
            return latest

        return grpc.dynamic_ssl_server_credentials(
            given[0],
            current,  # type: ignore[arg-type]  # None, for no news, is what gRPC's documentation asks for
            require_client_authentication=self._tls.client_ca is not None,
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        check(self._tls)
        chain = [(read_bytes(self._tls.key), read_bytes(self._tls.cert))]
        ca = None if self._tls.client_ca is None else read_bytes(self._tls.client_ca)
        return grpc.ssl_server_certificate_configuration(chain, ca)


def check(tls: Tls) -> None:
    """Raises UserError where gRPC would only say later, and in no words, that a handshake failed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for path in (tls.cert, tls.key):
        read_bytes(path)
    try:
        context.load_cert_chain(tls.cert, tls.key, password="")  # a key with a password is refused, not asked for
    except (ssl.SSLError, ValueError) as error:
        raise UserError(f"tls: {tls.cert} and {tls.key} are not a certificate and its key in PEM ({error})") from None
    if tls.client_ca is not None:
        read_bytes(tls.client_ca)
        try:
            context.load_verify_locations(tls.client_ca)
        except ssl.SSLError as error:
            raise UserError(f"tls.client_ca: {tls.client_ca} is not a certificate in PEM ({error})") from None


class CertificateCallers:
    """Who a client certificate stands for."""

    def __init__(self, known: Sequence[Certificate]) -> None:
        self._by_name = {c.common_name: c for c in known if c.common_name}
        self._by_san = {c.san: c for c in known if c.san}

    def principal(self, auth_context: Mapping[str, Any]) -> Principal | None:
        """The caller of a connection, by what TLS has verified (gRPC's name → list of bytes); None if it showed no
        certificate.

        Raises UnauthenticatedError for a good certificate that stands for nobody.
        """
        sans = _texts(auth_context, "x509_subject_alternative_name")
        names = _texts(auth_context, "x509_common_name")
        for san in sans:
            if san in self._by_san:
                return self._by_san[san].principal(san, "certificate")
        for name in names:
            if name in self._by_name:
                return self._by_name[name].principal(name, "certificate")
        if not names and not sans:
            return None
        raise UnauthenticatedError(
            f"the certificate of {(names or sans)[0]} stands for nobody: the server's `certificates:` do not name it"
        )


def _texts(auth_context: Mapping[str, Any], key: str) -> list[str]:
    return [value.decode(errors="replace") for value in auth_context.get(key, ())]
