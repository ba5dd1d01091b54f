"""`hpn site show|validate`: site folders."""

from __future__ import annotations

from typing import Any

import click

from happyneurons.cli.options import json_option, print_json
from happyneurons.errors import EXIT_FAILED


@click.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a site folder: nodes, queues, containers, and what to know of it."""
    from happyneurons.hpc.folders import load_site_folder

    folder = load_site_folder(name)
    facts = folder.facts
    if as_json:
        print_json({"name": folder.name, "path": str(folder.path), **facts.model_dump(mode="json")})
        return
    click.echo(f"{folder.name}: {facts.title}{'' if facts.in_service else ' (out of service)'}, {facts.scheduler}")
    click.echo(f"folder     {folder.path}")
    click.echo(f"node       {node_text(folder_document(name))}")
    for queue, rules in facts.queues.items():
        mark = " [default]" if queue == facts.default_queue else ""
        steps = ", ".join(f"{least}+ nodes {minutes} min" for least, minutes in sorted(rules.walltime_by_nodes.items()))
        text = f"{rules.min_nodes}–{rules.max_nodes} nodes, {steps or f'{rules.max_walltime_min} min'}"
        text += f", {rules.max_queued} queued" + (", killed without warning" if rules.preemptable else "")
        click.echo(f"queue      {queue}{mark}: {text}")
    click.echo(f"project    {facts.project}")
    if facts.options:
        click.echo(f"options    {', '.join(f'{key}={value}' for key, value in facts.options.items())}")
    binds = f", binds {' '.join(facts.container.binds)}" if facts.container.binds else ""
    click.echo(f"containers {facts.container.command}{binds}")
    for stage, resources in facts.resources.items():
        given = resources.model_dump(exclude_none=True)
        click.echo(f"resources  {stage}: {', '.join(f'{key} {value}' for key, value in given.items())}")
    click.echo(f"\n{facts.notes}")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME|PATH]…")
@json_option
def validate(names: tuple[str, ...], as_json: bool) -> None:
    """Check site folders: facts, job template, environment. All that come with HAPPYNeurons by default.

    Exits with 1 if something is wrong.
    """
    from happyneurons.hpc.folders import site_names
    from happyneurons.hpc.validate import validate_folder

    found = {name: validate_folder(name) for name in names or site_names()}
    if as_json:
        print_json(found)
    else:
        for name, problems in found.items():
            click.echo(f"{name}: {'OK' if not problems else ''}".rstrip())
            for problem in problems:
                click.echo(f"  {problem}")
    if any(found.values()):
        raise click.exceptions.Exit(EXIT_FAILED)


def folder_document(name: str) -> dict[str, Any]:
    """A site folder in short: for `hpn site list --known` and the table in docs/hpc.md."""
    from happyneurons.hpc.folders import load_site_folder

    facts = load_site_folder(name).facts
    return {
        "name": name, "title": facts.title, "in_service": facts.in_service, "scheduler": facts.scheduler,
        "node": facts.node.model_dump(mode="json"), "containers": facts.container.command,
        "queues": {queue: rules.model_dump(mode="json") for queue, rules in facts.queues.items()},
        "default_queue": facts.default_queue, "project": facts.project,
    }  # fmt: skip


def node_text(document: dict[str, Any]) -> str:
    """A node on one line."""
    node = document["node"]
    gpus = f", {node['gpus']} × {node['gpu_type']}" if node["gpus"] else ""
    scratch = f", scratch {node['scratch']}" if node["scratch"] else ""
    return f"{node['cores']} cores, {node['memory_gb']:g} GB{gpus}{scratch}"
