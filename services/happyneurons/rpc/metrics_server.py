"""`/metrics` over HTTP, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from happyneurons._version import __version__
from happyneurons.errors import UserError
from happyneurons.rpc.metric_families import StoreCollector, gauge


class BuildCollector(Collector):
    """Which version this is."""

    def collect(self) -> list[Metric]:
        return [gauge("happyneurons_build_info", "Version of the package", ["version"], {(__version__,): 1})]


def new_registry() -> CollectorRegistry:
    """What every server of ours tells of itself: version, memory, processor time, calls of the store."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(BuildCollector())
    registry.register(StoreCollector())
    return registry


class MetricsServer:
    """`/metrics` over HTTP."""

    def __init__(self, address: str, registry: CollectorRegistry, tls: Mapping[str, str] | None = None) -> None:
        """address: host:port (port 0: any). tls: certfile, keyfile, and for mutual TLS client_cafile.

        Raises UserError if it cannot be listened on.
        """
        options: dict[str, Any] = {**tls, "client_auth_required": "client_cafile" in tls} if tls else {}
        host, _, port = address.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), host or "127.0.0.1", registry, **options)
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"cannot serve metrics on {address}: {error}") from None
        self.address = f"{host or '127.0.0.1'}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
