"""A gRPC server as every one of ours is: health, reflection, rich errors, metrics, access control, a graceful end.

A service's methods raise the errors of :mod:`happyneurons.errors`; the interceptor here answers
with the status for them and counts every call. Streams have threads of their own, so that however many
watch, calls that answer once find a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from happyneurons.errors import HappyError, UserError
from happyneurons.rpc.auth.limits import Slots
from happyneurons.rpc.auth.server import Security, open_to_strangers
from happyneurons.rpc.errors import to_status
from happyneurons.rpc.limits import KEEPALIVE_S, MAX_STREAMS, MESSAGE_SIZE_OPTIONS

log = logging.getLogger("happyneurons.rpc")

THREADS = 64
"""Calls at a time that answer once."""

SPARE_THREADS = 16
"""Threads for streams beyond those that are carried: they refuse the others."""

PROBE_THREADS = 4

GRACE_S = 5.0
"""Time that calls get to end when the server stops."""


@dataclass(frozen=True)
class Service:
    """A service and how it is added: `Service(NAME, lambda server: add_…Servicer_to_server(…, server))`."""

    full_name: str
    add: Callable[[grpc.Server], None]


class RpcServer:
    """A server on one address. `stopping` is set when it begins to stop: streams end then."""

    def __init__(
        self,
        services: Sequence[Service],
        address: str,
        *,
        registry: CollectorRegistry | None = None,
        stopping: threading.Event | None = None,
        threads: int = THREADS,
        security: Security | None = None,
    ) -> None:
        """security: who may call; None: everybody, without TLS.

        Raises UserError if the address (`host:port`; port 0: any) cannot be listened on.
        """
        self.stopping = stopping or threading.Event()
        self._health = health.HealthServicer()
        self._names = [s.full_name for s in services]
        self._security = security
        streams = MAX_STREAMS if security is None else security.config.limits.streams
        # Made when it is needed, each thread: few servers ever have many.
        self._streams = ThreadPoolExecutor(streams + SPARE_THREADS, thread_name_prefix="rpc-stream")
        interceptor = CallInterceptor(
            CallMetrics(registry or CollectorRegistry()), self._streams, Slots("streams", None, streams), security
        )
        own = [] if security is None else security.options()
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="rpc"),
            interceptors=[interceptor],
            options=[
                *(option for option in MESSAGE_SIZE_OPTIONS if option[0] not in dict(own)),
                *own,
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
                ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_S * 1000 // 2),
                # A server without processor time finds several pings at once, and would hang up on a good client.
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )
        for service in services:
            service.add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if security is None or security.config.reflection != "off":
            reflection.enable_server_reflection(
                [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
            )  # fmt: skip
        host = address.rpartition(":")[0]
        credentials = None if security is None else security.credentials()
        if security is None and open_to_strangers(address):
            log.warning(
                "%s: whoever reaches this address may do everything: give --security FILE (docs/security.md), "
                "or listen on 127.0.0.1",
                address,
            )
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise UserError(f"cannot listen on {address}: the port is taken, or the address is not ours") from error
        self.address = f"{host}:{self.port}"
        self._probes: grpc.Server | None = None
        self.health_address = ""
        if security is not None and security.config.health:
            self._probes, self.health_address = _health_alone(self._health, security.config.health)

    def start(self) -> None:
        """Serve, and say so to health checks."""
        self._server.start()
        if self._probes is not None:
            self._probes.start()
        for name in ("", *self._names):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Refuse new calls, let running ones end for up to `grace_s`, and return when all is over."""
        self._health.enter_graceful_shutdown()
        self.stopping.set()
        self._server.stop(grace_s).wait()
        if self._probes is not None:
            self._probes.stop(0).wait()
        self._streams.shutdown(wait=False)
        if self._security is not None:
            self._security.close()

    def wait(self) -> None:
        """Until the server has stopped."""
        self._server.wait_for_termination()


def _health_alone(servicer: health.HealthServicer, address: str) -> tuple[grpc.Server, str]:
    """A server of nothing but health, without TLS: Kubernetes' own probes speak none. Raises UserError."""
    server = grpc.server(
        ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="rpc-health"),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4096)],
        maximum_concurrent_rpcs=16 * PROBE_THREADS,
    )
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise UserError(f"health: cannot listen on {address}: the port is taken, or the address is not ours") from error
    return server, f"{address.rpartition(':')[0]}:{port}"


def write_port_file(path: Path, address: str) -> None:
    """Write an address so that readers see all of it or nothing. Raises UserError."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.write_text(f"{address}\n")
        new.replace(path)
    except OSError as error:
        raise UserError(f"port file {path}: {error.strerror}") from None


class CallMetrics:
    """Counts and latencies of calls, by service, method and code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["service", "method"]
        self.calls = Counter(
            "happyneurons_grpc_calls", "gRPC calls that ended", [*labels, "code"], registry=registry
        )  # fmt: skip
        self.seconds = Histogram(
            "happyneurons_grpc_call_seconds", "Duration of unary gRPC calls", labels, registry=registry,
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
        )  # fmt: skip
        self.in_flight = Gauge(
            "happyneurons_grpc_calls_in_flight", "gRPC calls and streams at work", labels, registry=registry
        )  # fmt: skip


class CallInterceptor(grpc.ServerInterceptor):
    """Errors become statuses, calls become metrics, and every call passes the guard if there is one."""

    def __init__(
        self, metrics: CallMetrics, streams: ThreadPoolExecutor, slots: Slots, security: Security | None
    ) -> None:  # fmt: skip
        """streams: threads for streams, of which `slots` may be at work."""
        self._metrics, self._streams, self._slots = metrics, streams, slots
        self._guard = None if security is None else security.guard

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(details)
        if handler is None:
            return None  # UNIMPLEMENTED; its name comes from outside and would be a label without bounds
        service, _, method = details.method.lstrip("/").partition("/")
        long = handler.request_streaming or handler.response_streaming
        if self._guard is not None:
            handler = self._guard.protect(service, method, handler)
        if handler.response_streaming:
            makers = grpc.stream_stream_rpc_method_handler, grpc.unary_stream_rpc_method_handler
            behaviour = self._streaming(handler.stream_stream or handler.unary_stream, service, method)
        else:
            makers = grpc.stream_unary_rpc_method_handler, grpc.unary_unary_rpc_method_handler
            behaviour = self._single(handler.stream_unary or handler.unary_unary, service, method, long)
        if long:
            behaviour.experimental_thread_pool = self._streams  # gRPC runs it there
        make = makers[0] if handler.request_streaming else makers[1]
        return make(
            behaviour,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _single(self, behaviour: Any, service: str, method: str, long: bool) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with self._observed(service, method, context) as observed:
                begin = time.perf_counter()
                try:
                    with self._slots.hold("") if long else contextlib.nullcontext():
                        return behaviour(request, context)
                except Exception as error:  # noqa: BLE001 (whatever it is, the caller gets a status)
                    observed.fail(error)
                finally:
                    self._metrics.seconds.labels(service, method).observe(time.perf_counter() - begin)

        return call

    def _streaming(self, behaviour: Any, service: str, method: str) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._observed(service, method, context) as observed:
                try:
                    with self._slots.hold(""):
                        yield from behaviour(request, context)
                except Exception as error:  # noqa: BLE001 (whatever it is, the caller gets a status)
                    observed.fail(error)

        return call

    def _observed(self, service: str, method: str, context: grpc.ServicerContext) -> _Observed:
        return _Observed(self._metrics, service, method, context)


class _Observed:
    """One call: in flight while the block lasts, counted with its code after it."""

    def __init__(self, metrics: CallMetrics, service: str, method: str, context: Any) -> None:
        self._metrics, self._service, self._method, self._context = metrics, service, method, context

    def __enter__(self) -> _Observed:
        self._metrics.in_flight.labels(self._service, self._method).inc()
        return self

    def fail(self, error: Exception) -> None:
        """Answer with the status for an error. Always raises, as gRPC's abort does."""
        if self._context.code() is not None:
            raise error  # the method aborted by itself
        if isinstance(error, grpc.RpcError) and not self._context.is_active():
            raise error  # the caller went away while we waited for its message
        if not isinstance(error, HappyError):
            log.exception("%s/%s failed", self._service, self._method, exc_info=error)
        self._context.abort_with_status(rpc_status.to_status(to_status(error)))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._metrics.in_flight.labels(self._service, self._method).dec()
        code = self._context.code()
        if kind is GeneratorExit or (code is None and not self._context.is_active()):
            code = grpc.StatusCode.CANCELLED  # the client went away
        name = "OK" if code is None else code.name
        self._metrics.calls.labels(self._service, self._method, name).inc()
