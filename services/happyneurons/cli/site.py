"""`hpn site list`, and the group."""

from __future__ import annotations

from pathlib import Path

import click

from happyneurons.cli.options import json_option, orchestrator_address, orchestrator_option, print_json
from happyneurons.cli.site_check import check
from happyneurons.cli.site_folders import folder_document, node_text, show, validate
from happyneurons.cli.site_init import init
from happyneurons.cli.site_nodes import nodes, release, request
from happyneurons.client.client import Client
from happyneurons.client.plain import plain
from happyneurons.v1 import pipelines_pb2


@click.group()
def site() -> None:
    """Where jobs can run."""


for command in (init, show, validate, check, nodes, request, release):
    site.add_command(command)


@site.command(name="list")
@click.option("--sites", type=click.Path(path_type=Path), help="File of sites, where no orchestrator is asked.")
@click.option("--known", is_flag=True, help="The site folders that come with HAPPYNeurons instead.")
@orchestrator_option
@json_option
def list_sites(sites: Path | None, known: bool, orchestrator: str | None, as_json: bool) -> None:
    """Sites of an orchestrator, or of a file; of this machine by default."""
    if known:
        _list_known(as_json)
        return
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


def _list_known(as_json: bool) -> None:
    from happyneurons.hpc.folders import site_names

    found = [folder_document(name) for name in site_names()]
    if as_json:
        print_json(found)
        return
    width = max(len(document["name"]) for document in found)
    for document in found:
        service = "" if document["in_service"] else " (out of service)"
        click.echo(f"{document['name']:{width}}  {document['title']}{service}: {node_text(document)}")
        click.echo(f"{'':{width}}  queues {', '.join(document['queues'])}")


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
