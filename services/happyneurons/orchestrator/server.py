"""The orchestrator as a server: `hpn serve orchestrator`, and the one that `hpn run` brings along."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from happyneurons.errors import UserError
from happyneurons.orchestrator.bounds import Bounds
from happyneurons.orchestrator.metrics import OrchestratorCollector
from happyneurons.orchestrator.orchestrator import Orchestrator
from happyneurons.orchestrator.sections import AcquisitionServicer
from happyneurons.orchestrator.service import PipelineServicer
from happyneurons.orchestrator.sites import SiteConfig, load_sites, make_executor, rate_of
from happyneurons.rpc.auth.server import Security
from happyneurons.rpc.metrics_server import MetricsServer, new_registry
from happyneurons.rpc.server import RpcServer, Service, write_port_file
from happyneurons.rpc.stop_signal import StopSignal
from happyneurons.store.documents import Store
from happyneurons.store.roots import VARIABLE, as_variable
from happyneurons.v1 import (
    acquisition_service_pb2,
    acquisition_service_pb2_grpc,
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
)

log = logging.getLogger("happyneurons.orchestrator")

SERVICE_NAME = pipeline_service_pb2.DESCRIPTOR.services_by_name["PipelineService"].full_name
ACQUISITION_NAME = acquisition_service_pb2.DESCRIPTOR.services_by_name["AcquisitionService"].full_name


class OrchestratorServer:
    """An orchestrator with its gRPC server and its metrics. `close` leaves running jobs to a successor."""

    def __init__(
        self,
        store: Store,
        address: str = "127.0.0.1:0",
        *,
        sites: Mapping[str, SiteConfig] | None = None,
        default_site: str = "",
        metrics_address: str | None = None,
        drive: bool = True,
        resume: bool = True,
        security: Security | None = None,
    ) -> None:
        """drive, resume: see Orchestrator. security: who may do what; None: everybody everything.

        Raises UserError for what cannot be listened on or used.
        """
        configs = dict(sites) if sites is not None else load_sites(None)
        default_site = default_site or ("local" if "local" in configs else next(iter(configs)))
        if default_site not in configs:
            raise UserError(f"default site {default_site!r}: there are {', '.join(sorted(configs))}")
        self._resume = resume
        registry = new_registry()
        rates = {name: rate_of(name, config) for name, config in configs.items()}
        stopping = threading.Event()
        # Executors before the server: what they need to start must not find gRPC's threads in its way.
        executors = {name: make_executor(name, config) for name, config in configs.items()}
        bounds = Bounds() if security is None else bounds_of(security, store)
        self.orchestrator = Orchestrator(store, executors, default_site, drive=drive, bounds=bounds)
        servicer = PipelineServicer(
            self.orchestrator, stopping, {name: config.description for name, config in configs.items()}
        )
        service = Service(
            SERVICE_NAME,
            lambda server: pipeline_service_pb2_grpc.add_PipelineServiceServicer_to_server(servicer, server),
        )
        acquisition = AcquisitionServicer(self.orchestrator, servicer.check_drives)
        sections = Service(
            ACQUISITION_NAME,
            lambda server: acquisition_service_pb2_grpc.add_AcquisitionServiceServicer_to_server(acquisition, server),
        )
        self._rpc = RpcServer([service, sections], address, registry=registry, stopping=stopping, security=security)
        self._metrics: MetricsServer | None = None
        if metrics_address is not None:
            registry.register(OrchestratorCollector(self.orchestrator, rates))
            self._metrics = MetricsServer(metrics_address, registry, None if security is None else security.metrics_tls)

    @property
    def address(self) -> str:
        """`host:port` that clients connect to."""
        return self._rpc.address

    @property
    def health_address(self) -> str:
        """Of health checks without TLS, where the security file asks for them."""
        return self._rpc.health_address

    @property
    def metrics_address(self) -> str | None:
        return None if self._metrics is None else self._metrics.address

    def start(self) -> None:
        """Resume what a predecessor left, then serve. Raises StoreAccessError."""
        self.orchestrator.start(resume=self._resume)
        self._rpc.start()

    def close(self) -> None:
        """Stop driving and serving; running jobs go on. The lead goes first: another one has it at once."""
        self.orchestrator.halt()
        self._rpc.stop()
        if self._metrics is not None:
            self._metrics.close()
        self.orchestrator.close()

    def __enter__(self) -> OrchestratorServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bounds_of(security: Security, store: Store) -> Bounds:
    """What pipelines may ask and read at a server with a security file."""
    limits = security.config.limits
    return Bounds(
        security.roots(store), frozenset(security.config.stages), limits.pipeline_bytes, limits.pipeline_jobs
    )  # fmt: skip


def local_sites(sites_file: Path | None, cores: int | None, memory_gb: float | None) -> dict[str, SiteConfig]:
    """Sites of a file, or this machine with limits. Raises UserError."""
    sites = load_sites(sites_file)
    if cores is None and memory_gb is None:
        return sites
    if sites_file is not None:
        raise UserError(f"cores and memory of sites stand in {sites_file}: leave out --cores and --memory-gb")
    limits = {"cores": cores, "memory_gb": memory_gb}
    return {name: config.model_copy(update=limits) for name, config in sites.items()}


def serve_orchestrator(
    store_uri: str,
    address: str,
    *,
    metrics_address: str | None = None,
    sites_file: Path | None = None,
    default_site: str = "",
    cores: int | None = None,
    memory_gb: float | None = None,
    port_file: Path | None = None,
    security_file: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT; running jobs go on, and the next orchestrator takes them up.

    address, metrics_address: host:port (port 0: any). port_file: gets the bound address once it serves,
    in one step, so that whoever waits for it never reads half a line. security_file: docs/security.md.
    """
    stop = StopSignal()
    store = Store(store_uri)
    security = None if security_file is None else Security.load(security_file)
    if security is not None:
        os.environ[VARIABLE] = as_variable(security.roots(store))  # for the ranks that are started from here
    server = OrchestratorServer(
        store, address, sites=local_sites(sites_file, cores, memory_gb), default_site=default_site,
        metrics_address=metrics_address, security=security,
    )  # fmt: skip
    with server:
        if port_file is not None:
            write_port_file(port_file, server.address)
        scheme = "https" if security is not None and security.metrics_tls else "http"
        metrics = f", metrics at {scheme}://{server.metrics_address}/metrics" if server.metrics_address else ""
        health = f", health without TLS at {server.health_address}" if server.health_address else ""
        say(f"orchestrator of {server.orchestrator.store.uri} at {server.address}{metrics}{health}")
        stop.wait()
        say("stopping; running jobs go on, and the next orchestrator takes them up")
