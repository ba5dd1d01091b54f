"""The processes behind one address of a stage service.

`host:port` is one of them. `dns:///NAME:PORT` is as many as the name has addresses (a headless Service of
Kubernetes has one for each ready pod); it is resolved again and again, as they come and go.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from happyneurons.errors import UnavailableError, UserError
from happyneurons.rpc.access import Access
from happyneurons.rpc.client import call, connect
from happyneurons.v1.stage_service_pb2_grpc import StageServiceStub

SCHEME = "dns:///"
RESOLVE_S = 5.0
TIMEOUT_S = 10.0

AWAY_S = 3.0
"""One that did not answer is not asked again for so long: many jobs may be there to be asked about."""

Resolver = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """`ip:port` of every address that a name has now; none if it has none. Raises nothing."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    ips = {place[0] for *_, place in found if isinstance(place[0], str)}
    return sorted(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in ips)


class Endpoints:
    """Channels to all of them. Thread-safe."""

    def __init__(self, address: str, resolver: Resolver = resolve, access: Access | None = None) -> None:
        """Raises UserError for an address that is none."""
        self.address, self._resolver, self._access = address, resolver, access
        self.spread = address.startswith(SCHEME)
        host, _, port = address.removeprefix(SCHEME).rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"stage server address {address!r}: write host:port, or {SCHEME}NAME:PORT for all its pods")
        self._host, self._port = host, int(port)
        self._lock = threading.Lock()
        self._known: list[str] = [] if self.spread else [address]
        self._next_resolve = 0.0
        self._channels: dict[str, grpc.Channel] = {}
        self._away: dict[str, tuple[float, str]] = {}
        self._turn = itertools.count()

    def all(self) -> list[str]:
        """All of them, each call beginning with the next one."""
        with self._lock:
            now = time.monotonic()
            if self.spread and now >= self._next_resolve:
                self._next_resolve = now + RESOLVE_S
                self._known = self._resolver(self._host, self._port)
                for gone in set(self._channels) - set(self._known):
                    if gone in self._away:  # one that still answers may have jobs to be asked about
                        self._channels.pop(gone).close()
                        self._away.pop(gone)
            if not self._known:
                raise UnavailableError(f"no stage server at {self.address}: the name has no addresses now")
            turn = next(self._turn) % len(self._known)
            return self._known[turn:] + self._known[:turn]

    def ask(self, endpoint: str, method: str, request: Any) -> Any:
        """The answer of one of them. Raises what the server raised; UnavailableError at once while it is away."""
        peer = f"the stage server at {endpoint}"
        with self._lock:
            until, why = self._away.get(endpoint, (0.0, ""))
            if time.monotonic() < until:
                raise UnavailableError(why)
            channel = self._channels.get(endpoint)
            if channel is None:
                # Certificates are made out to the name.
                channel = connect(endpoint, self._access, authority=self._host if self.spread else "")
                self._channels[endpoint] = channel
        try:
            # Another one may have room now.
            answer = call(
                getattr(StageServiceStub(channel), method), request, timeout_s=TIMEOUT_S, peer=peer, patient=False
            )
        except UnavailableError as error:
            if type(error) is UnavailableError:  # one that is overloaded answers
                with self._lock:
                    self._away[endpoint] = (time.monotonic() + AWAY_S, str(error))
            raise
        with self._lock:
            self._away.pop(endpoint, None)
        return answer

    def close(self) -> None:
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()
