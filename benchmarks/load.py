"""How an orchestrator bears many clients: 200 at a time that submit, watch and cancel runs.

Beside it, in the same run, from the same processes and in turns, a bare grpcio server that echoes: what gRPC and this
machine cost by themselves. Said are latencies of unary calls and of events in streams as multiples of the echo's,
whether every watcher saw every event, and how the server's memory went.

    python benchmarks/load.py [--clients 200] [--minutes 1]

Runs are open ones that wait for sections, so no job is started: it is the control plane that is measured. Each client
submits a run, watches it, reads it, cancels it and watches to its end, over and over.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

PIPELINE = """
name: load
acquisition: {batch: 2, wait_s: 3600}
jobs:
  ingest: {each: batch, params: {source: "${batch}"}}
  montage: {each: batch, inputs: {tiles: ingest.tiles}}
"""
EVENTS = ["run_submitted", "run_waiting", "run_cancel_requested", "run_ended"]
PROCESSES = 4
UNARY, STREAM = "/echo/Unary", "/echo/Stream"
Times = dict[str, list[float]]


def echo_server(port_file: Path) -> None:
    """grpcio and nothing else: one message back, or as many as a run has events."""
    import grpc

    def unary(request: bytes, _: grpc.ServicerContext) -> bytes:
        return request

    def stream(request: bytes, _: grpc.ServicerContext) -> Any:
        for _i in EVENTS:
            yield request

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return {
                UNARY: grpc.unary_unary_rpc_method_handler(unary),
                STREAM: grpc.unary_stream_rpc_method_handler(stream),
            }.get(details.method)

    server = grpc.server(ThreadPoolExecutor(64))
    server.add_generic_rpc_handlers([Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    new = port_file.with_suffix(".new")
    new.write_text(f"127.0.0.1:{port}")
    new.replace(port_file)
    server.wait_for_termination()


def timed(times: Times, name: str, call: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    answer = call()
    times[name].append(time.perf_counter() - begin)
    return answer


def one_echo(channel: Any, times: Times) -> None:
    """As many calls and messages as `one_run` has."""
    message = b"x" * 600
    unary, stream = channel.unary_unary(UNARY), channel.unary_stream(STREAM)
    for _ in range(3):
        timed(times, "echo unary", lambda: unary(message, timeout=60))
    timed(times, "echo stream", lambda: next(iter(stream(message, timeout=60))))


def one_run(address: str, channel: Any, times: Times) -> list[str]:
    """A run from its submission to its end; returns what is wrong with the events that its watcher saw."""
    from happyneurons.v1 import pipeline_service_pb2 as pb
    from happyneurons.v1 import pipeline_service_pb2_grpc, pipelines_pb2

    stub = pipeline_service_pb2_grpc.PipelineServiceStub(channel)
    spec = pipelines_pb2.PipelineSpec(yaml=PIPELINE)
    run = timed(times, "SubmitRun", lambda: stub.SubmitRun(pb.SubmitRunRequest(pipeline=spec), timeout=60)).run
    watch = stub.WatchRun(pb.WatchRunRequest(run_id=run.id), timeout=600)
    seen = [timed(times, "first event of WatchRun", lambda: next(watch)).event]
    while seen[-1].type != "run_waiting":
        seen.append(next(watch).event)
    timed(times, "GetRun", lambda: stub.GetRun(pb.GetRunRequest(run_id=run.id), timeout=60))
    asked = time.perf_counter()
    timed(times, "CancelRun", lambda: stub.CancelRun(pb.CancelRunRequest(run_id=run.id), timeout=60))
    for answer in watch:
        seen.append(answer.event)
        if answer.event.type == "run_cancel_requested":
            times["cancel to its event"].append(time.perf_counter() - asked)
    wrong = []
    if [e.number for e in seen] != list(range(1, len(seen) + 1)):
        wrong.append(f"{run.id}: events {[e.number for e in seen]}")
    if [e.type for e in seen] != EVENTS:
        wrong.append(f"{run.id}: events {[e.type for e in seen]}")
    return wrong


def clients(address: str, echo: str, count: int, until: float, answers: Any) -> None:
    """A process of `count` clients, each a thread with channels of its own."""
    import grpc

    times: Times = defaultdict(list)
    wrong: list[str] = []
    runs = [0] * count

    def client(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each client
        with grpc.insecure_channel(address, options) as ours, grpc.insecure_channel(echo, options) as bare:
            while time.time() < until:
                try:
                    wrong.extend(one_run(address, ours, times))
                    one_echo(bare, times)
                    runs[number] += 1
                except grpc.RpcError as error:
                    wrong.append(f"{error.code().name}: {error.details()}")

    threads = [threading.Thread(target=client, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put((dict(times), wrong, sum(runs)))


def wait_for_file(file: Path, process: subprocess.Popen[bytes]) -> str:
    while not file.exists():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args}: ended with {process.returncode}")
        time.sleep(0.05)
    return file.read_text().strip()


def measure(count: int, minutes: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        serve = [sys.executable, "-m", "happyneurons.cli.main", "serve", "orchestrator", "--store", f"{folder}/store"]
        serve += ["--address", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--port-file", f"{folder}/port"]
        server = subprocess.Popen(serve, stdout=subprocess.DEVNULL)
        bare = subprocess.Popen([sys.executable, __file__, "--echo", f"{folder}/echo"])
        try:
            address, echo = wait_for_file(folder / "port", server), wait_for_file(folder / "echo", bare)
            context = multiprocessing.get_context("spawn")
            answers = context.Queue()
            until = time.time() + 60 * minutes
            shares = [len(range(i, count, PROCESSES)) for i in range(PROCESSES)]
            started = [
                context.Process(target=clients, args=(address, echo, share, until, answers))
                for share in shares
                if share
            ]
            for process in started:
                process.start()
            watched = psutil.Process(server.pid)
            memory: list[tuple[float, int]] = []
            while time.time() < until:
                memory.append((time.time(), watched.memory_info().rss))
                time.sleep(min(5.0, 60 * minutes / 20))
            found = [answers.get(timeout=300) for _ in started]
            for process in started:
                process.join()
            memory.append((time.time(), watched.memory_info().rss))
        finally:
            for child in (server, bare):
                child.kill()
                child.wait()
    times: Times = defaultdict(list)
    for part, _, _ in found:
        for name, values in part.items():
            times[name] += values
    return {
        "clients": count,
        "minutes": minutes,
        "runs": sum(runs for _, _, runs in found),
        "wrong": [line for _, wrong, _ in found for line in wrong],
        "latency_ms": {name: quantiles(values) for name, values in sorted(times.items())},
        "memory": memory_report(memory),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(values) * 1000, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "calls": len(values)}


def memory_report(memory: list[tuple[float, int]]) -> dict[str, float]:
    """MB after the first fifth, at the end, and the slope of a line through the last half, MB a minute."""
    half = memory[len(memory) // 2 :]
    t, rss = np.array([m[0] for m in half]), np.array([m[1] / 1e6 for m in half])
    slope = float(np.polyfit(t - t[0], rss, 1)[0] * 60) if len(half) > 2 else 0.0
    early = memory[len(memory) // 5][1] / 1e6
    return {"early_mb": round(early, 1), "end_mb": round(memory[-1][1] / 1e6, 1), "slope_mb_per_min": round(slope, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long it goes on [1]; the issue asks for 10")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--echo", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.echo is not None:
        echo_server(given.echo)
        return
    report = measure(given.clients, given.minutes)
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)
    if report["wrong"]:
        sys.exit(1)


def show(report: dict[str, Any]) -> None:
    latency, memory = report["latency_ms"], report["memory"]
    done = f"{report['runs']} runs submitted, watched and cancelled"
    print(f"{report['clients']} clients for {report['minutes']:g} min: {done}")
    for name, found in latency.items():
        base = latency["echo stream" if "event" in name else "echo unary"]
        times = [f"{found[q] / base[q]:.1f} ×" for q in ("p50", "p99")]
        ratio = "" if name.startswith("echo") else f"  {' / '.join(times)}"
        print(f"{name:26} p50 {found['p50']:8.1f} ms  p99 {found['p99']:8.1f} ms  {found['calls']:7} calls{ratio}")
    slope = f"{memory['slope_mb_per_min']} MB/min in the last half"
    print(f"server's memory: {memory['early_mb']} → {memory['end_mb']} MB, {slope}")
    print(f"wrong: {len(report['wrong'])}")
    for line in report["wrong"][:10]:
        print(f"  {line}")


if __name__ == "__main__":
    main()
