"""`hpn site nodes|request|release`: allocations by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from happyneurons.cli.options import json_option, parse_assignments, print_json
from happyneurons.errors import UserError

if TYPE_CHECKING:
    from happyneurons.executors.balsam.config import BalsamAccess
    from happyneurons.executors.balsam.nodes import Nodes
    from happyneurons.executors.balsam.records import BatchJob
    from happyneurons.orchestrator.sites import SiteConfig

F = TypeVar("F", bound=Callable[..., Any])
COLUMNS = ("ID", "STATE", "NODES", "QUEUE", "PROJECT", "LEFT", "JOBS", "BY", "")


def sites_option(command: F) -> F:
    """`--sites`"""
    return click.option(
        "--sites", type=click.Path(path_type=Path), envvar="HPN_SITES", help="File of sites [default: $HPN_SITES]."
    )(command)


def balsam_site(name: str, path: Path | None) -> tuple[SiteConfig, BalsamAccess, str]:
    """A Balsam site of the sites file: its entry, the access, its folder. Raises UserError."""
    from happyneurons.orchestrator.sites import load_sites

    if path is None:
        raise UserError(f"site {name}: which sites file? Give --sites FILE, or set HPN_SITES")
    sites = load_sites(path)
    config = sites.get(name)
    if config is None:
        raise UserError(f"{path} has no site {name!r}; it has {', '.join(sorted(sites))}")
    if config.executor != "balsam" or config.balsam is None or not config.folder:
        raise UserError(f"site {name} is no Balsam site (executor: balsam, with folder: and balsam:)")
    return config, config.balsam, config.folder


@contextmanager
def _nodes(name: str, path: Path | None) -> Iterator[Nodes]:
    from happyneurons.executors.balsam.nodes import Nodes
    from happyneurons.hpc.folders import load_site_folder

    config, access, folder = balsam_site(name, path)
    found = Nodes(name, load_site_folder(folder), access, config.pool)
    try:
        yield found
    finally:
        found.close()


@click.command()
@click.argument("site")
@sites_option
@click.option("--all", "ended", is_flag=True, help="Those that are over, too.")
@json_option
def nodes(site: str, sites: Path | None, ended: bool, as_json: bool) -> None:
    """Show the nodes of a Balsam site that are asked for or at work, and the jobs that wait for some."""
    with _nodes(site, sites) as found:
        batch_jobs, waiting = found.list(ended=ended), found.waiting_jobs()
    if as_json:
        print_json({"batch_jobs": [_document(b) for b in batch_jobs], "jobs_waiting": waiting})
        return
    if batch_jobs:
        _print_table([COLUMNS, *(_row(site, b) for b in batch_jobs)])
    else:
        click.echo(f"{site}: no nodes; ask for some with `hpn site request {site} --nodes N`")
    if waiting:
        click.echo(f"{waiting} job{'s wait' if waiting > 1 else ' waits'} for nodes")


@click.command()
@click.argument("site")
@sites_option
@click.option("--nodes", "count", type=click.IntRange(min=1), required=True, help="How many.")
@click.option("--queue", help="Queue or partition [default: the sites file's, or the site folder's].")
@click.option("--project", help="Who pays [default: the sites file's].")
@click.option("--walltime-min", type=click.IntRange(min=1), help="For how long [default: the sites file's].")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="A parameter of the job template.")
@click.option("--wait", is_flag=True, help="Until they run.")
@click.option("--wait-s", type=click.FloatRange(min=0), default=3600.0, show_default=True, help="How long at most.")
@json_option
def request(
    site: str, sites: Path | None, count: int, queue: str | None, project: str | None, walltime_min: int | None,
    options: tuple[str, ...], wait: bool, wait_s: float, as_json: bool,
) -> None:  # fmt: skip
    """Ask for nodes of a Balsam site. They take any of its jobs, until their walltime ends or they are released."""
    given = {name: str(value) for name, value in parse_assignments(options, "--option").items()}
    with _nodes(site, sites) as found:
        batch_job = found.request(count, queue=queue, project=project, walltime_min=walltime_min, options=given)
        if not as_json:
            click.echo(
                f"batch job {batch_job.id}: {batch_job.nodes} nodes of {batch_job.queue} for {batch_job.walltime_min} "
                f"min, charged to {batch_job.project}"
            )
        if wait:
            batch_job = found.wait(batch_job.id, wait_s)
    if as_json:
        print_json(_document(batch_job))
    elif wait:
        click.echo(f"batch job {batch_job.id}: {batch_job.state}")


@click.command()
@click.argument("site")
@click.argument("ids", nargs=-1, type=int, metavar="[ID]…")
@sites_option
@click.option("--all", "everything", is_flag=True, help="All that were asked for by hand.")
@click.option("--force", is_flag=True, help="Even if jobs run in them: those are interrupted, and tried again.")
@json_option
def release(
    site: str, ids: tuple[int, ...], sites: Path | None, everything: bool, force: bool, as_json: bool
) -> None:  # fmt: skip
    """Give nodes of a Balsam site back: batch jobs by their numbers, or all that were asked for by hand."""
    if everything == bool(ids):
        raise UserError("say which: numbers of batch jobs (`hpn site nodes` lists them), or --all")
    with _nodes(site, sites) as found:
        wanted = ids or [b.id for b in found.list() if b.serves(site) and not b.owned_by(site)]
        released = [found.release(number, force=force) for number in wanted]
    if as_json:
        print_json([_document(b) for b in released])
        return
    if not released:
        click.echo(f"{site}: no nodes were asked for by hand")
    for batch_job in released:
        click.echo(f"batch job {batch_job.id}: {batch_job.state}")


def _document(batch_job: BatchJob) -> dict[str, Any]:
    return {**asdict(batch_job), "filter_tags": dict(batch_job.filter_tags), "jobs": list(batch_job.jobs)}


def _row(site: str, batch_job: BatchJob) -> tuple[str, ...]:
    left = batch_job.minutes_left if batch_job.minutes_left is not None else batch_job.walltime_min
    who = "pool" if batch_job.owned_by(site) else "hand" if batch_job.serves(site) else "others"
    return (
        str(batch_job.id), batch_job.state, str(batch_job.nodes), batch_job.queue, batch_job.project,
        f"{left:.0f} min", str(len(batch_job.jobs)), who, batch_job.message[:80],
    )  # fmt: skip


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
