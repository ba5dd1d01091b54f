"""`hpn site list`."""

from __future__ import annotations

from pathlib import Path

import click

from happyneurons.cli.options import json_option, orchestrator_address, orchestrator_option, print_json
from happyneurons.client.client import Client
from happyneurons.client.plain import plain
from happyneurons.v1 import pipelines_pb2


@click.group()
def site() -> None:
    """Where jobs can run."""


@site.command(name="list")
@click.option("--sites", type=click.Path(path_type=Path), help="File of sites, where no orchestrator is asked.")
@orchestrator_option
@json_option
def list_sites(sites: Path | None, orchestrator: str | None, as_json: bool) -> None:
    """Sites of an orchestrator, or of a file; of this machine by default."""
    address = orchestrator_address(orchestrator, None if sites is None else str(sites))
    if address is not None:
        with Client(address) as client:
            found = client.sites()
    else:
        found = _from_file(sites)
    if as_json:
        print_json([plain(s) for s in found])
        return
    for s in found:
        size = f"{s.cores} cores, {s.memory_gb:.3g} GB" if s.cores else ""
        state = "available" if s.available else f"not available: {s.problem}"
        jobs = f"{s.jobs_running} running, {s.jobs_queued} queued" if s.jobs_running or s.jobs_queued else ""
        click.echo("  ".join(part for part in (s.name, s.executor, size, state, jobs, s.description) if part))


def _from_file(path: Path | None) -> list[pipelines_pb2.Site]:
    from happyneurons.orchestrator.sites import load_sites, make_executor

    found = []
    for name, config in sorted(load_sites(path).items()):
        executor = make_executor(name, config)
        capacity = executor.capacity()
        executor.close()
        found.append(
            pipelines_pb2.Site(
                name=name, executor=executor.kind, description=config.description, cores=capacity.cores,
                memory_gb=capacity.memory_gb, available=not capacity.problem, problem=capacity.problem,
            )
        )  # fmt: skip
    return found
