"""`hpn serve orchestrator|stage|volumes`: servers, until SIGTERM."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from happyneurons.cli.options import json_option, store_option, store_uri


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
    as_json: bool,
) -> None:
    """Carry out pipelines; the runs of a predecessor go on. Prints one line once it serves."""
    from happyneurons.orchestrator.server import serve_orchestrator

    serve_orchestrator(
        store_uri(store), address, metrics_address=metrics, sites_file=sites, default_site=default_site, cores=cores,
        memory_gb=memory_gb, port_file=port_file,
        say=(lambda text: click.echo(json.dumps({"message": text}))) if as_json else click.echo,
    )  # fmt: skip


@serve.command()
@store_option
@click.option("--address", default="127.0.0.1:50051", show_default=True, help="host:port; port 0: any.")
@click.option("--cores", type=int, help="Cores that jobs may use together [default: all].")
@click.option("--memory-gb", type=float, help="Memory that jobs may use together, in GB [default: all].")
def stage(store: str | None, address: str, cores: int | None, memory_gb: float | None) -> None:
    """Serve the stages of this installation to orchestrators elsewhere (as `hpn-stage serve`)."""
    from happyneurons.worker.server import serve_stage

    serve_stage(store_uri(store), address, cores=cores, memory_gb=memory_gb)
