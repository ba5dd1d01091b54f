"""`hpn serve orchestrator|stage|volumes`: servers, until SIGTERM."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import click

from happyneurons.cli.options import json_option, store_option, store_uri

security_option = click.option(
    "--security", type=click.Path(path_type=Path), help="Who may do what: docs/security.md [default: everybody all]."
)
DRAIN_HELP = "At the end ask attempts to stop, and wait so long until they have [default: they go on by themselves]."


@click.group()
def serve() -> None:
    """Start a server. It runs until SIGTERM (or Ctrl-C)."""
    root = logging.getLogger()
    root.setLevel(min(root.level, logging.WARNING))


@serve.command()
@store_option
@click.option("--address", default="127.0.0.1:50050", show_default=True, help="host:port; port 0: any.")
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics there; port 0: any.")
@click.option("--sites", type=click.Path(path_type=Path), help="File of sites [default: this machine].")
@click.option("--default-site", default="", help="Site of jobs that name none.")
@click.option("--cores", type=int, help="Cores of this machine that jobs may use together [default: all].")
@click.option("--memory-gb", type=float, help="Memory that jobs may use together, in GB [default: all].")
@click.option("--port-file", type=click.Path(path_type=Path), help="File that gets the address once it serves.")
@security_option
@json_option
def orchestrator(
    store: str | None,
    address: str,
    metrics: str | None,
    sites: Path | None,
    default_site: str,
    cores: int | None,
    memory_gb: float | None,
    port_file: Path | None,
    security: Path | None,
    as_json: bool,
) -> None:
    """Carry out pipelines; the runs of a predecessor go on. Prints one line once it serves."""
    from happyneurons.orchestrator.server import serve_orchestrator

    serve_orchestrator(
        store_uri(store), address, metrics_address=metrics, sites_file=sites, default_site=default_site, cores=cores,
        memory_gb=memory_gb, port_file=port_file, security_file=security,
        say=_speaker(as_json),
    )  # fmt: skip


@serve.command()
@store_option
@click.option("--address", default="127.0.0.1:50051", show_default=True, help="host:port; port 0: any.")
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics there; port 0: any.")
@click.option("--cores", type=int, help="Cores that jobs may use together [default: all].")
@click.option("--memory-gb", type=float, help="Memory that jobs may use together, in GB [default: all].")
@click.option(
    "--max-queued", type=click.IntRange(min=0), help="Jobs that may wait for cores; more are refused [no limit]."
)
@click.option("--drain-s", type=click.FloatRange(min=0), help=DRAIN_HELP)
@click.option("--port-file", type=click.Path(path_type=Path), help="File that gets the address once it serves.")
@security_option
@json_option
def stage(
    store: str | None,
    address: str,
    metrics: str | None,
    cores: int | None,
    memory_gb: float | None,
    max_queued: int | None,
    drain_s: float | None,
    port_file: Path | None,
    security: Path | None,
    as_json: bool,
) -> None:
    """Serve the stages of this installation to orchestrators elsewhere (as `hpn-stage serve`)."""
    from happyneurons.worker.server import serve_stage

    serve_stage(
        store_uri(store), address, cores=cores, memory_gb=memory_gb, max_queued=max_queued, drain_s=drain_s,
        metrics_address=metrics, port_file=port_file, security_file=security, say=_speaker(as_json),
    )  # fmt: skip


def _speaker(as_json: bool) -> Callable[[str], None]:
    """Lines for people, or for programs; seen at once, also through a pipe."""

    def say(text: str) -> None:
        click.echo(json.dumps({"message": text}) if as_json else text)
        sys.stdout.flush()

    return say


@serve.command()
@click.argument("targets", metavar="[NAME=]URI…", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--port", default=9000, show_default=True, help="Port; 0: any.")
@click.option("--token", help="First part of every path; whoever does not know it sees nothing.")
@json_option
def volumes(targets: tuple[str, ...], host: str, port: int, token: str | None, as_json: bool) -> None:
    """Serve volumes, meshes and skeletons over HTTP, as Neuroglancer and other programs read them."""
    from happyneurons.rpc.stop_signal import StopSignal
    from happyneurons.store.artifacts import load_artifact
    from happyneurons.viewer import VolumeServer, source_of

    artifacts = {}
    for number, target in enumerate(targets):
        name, separator, uri = target.partition("=")
        named = bool(separator) and "/" not in name and ":" not in name
        artifacts[name if named else f"volume{number}"] = load_artifact(uri if named else target)
    roots = {name: source_of(a.data_uri, segmentation=a.kind == "segmentation") for name, a in artifacts.items()}
    with VolumeServer(roots, host=host, port=port, token=token) as server:
        stop = StopSignal()
        urls = {name: server.data_url(name) for name in roots}
        click.echo(json.dumps(urls) if as_json else "\n".join(f"{name}  {url}" for name, url in urls.items()))
        stop.wait()
