"""`hpn site check`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from happyneurons.cli.options import json_option, print_json
from happyneurons.cli.site_nodes import balsam_site, sites_option
from happyneurons.errors import EXIT_FAILED, HappyError, UserError

if TYPE_CHECKING:
    from happyneurons.hpc.check import CheckPlan, Finding


@click.command()
@click.argument("site")
@sites_option
@click.option("--store", default="", metavar="URI", help="Root of the store that its jobs will use.")
@click.option("--image", default="", metavar="SIF|IMAGE", help="What ranks run in: a SIF file, or an image of podman.")
@click.option("--native", is_flag=True, help="Ranks run in this very environment.")
@click.option("--here", is_flag=True, help="Start two ranks on this machine; login nodes may forbid that.")
@click.option("--submit", is_flag=True, help="Then a real job of two ranks: this costs an allocation.")
@click.option("--queue", help="Queue for --submit [default: the sites file's].")
@click.option("--wait-s", type=click.FloatRange(min=1), default=1800.0, show_default=True, help="For --submit.")
@json_option
def check(
    site: str, sites: Path | None, store: str, image: str, native: bool, here: bool, submit: bool,
    queue: str | None, wait_s: float, as_json: bool,
) -> None:  # fmt: skip
    """Is a site ready? Asks before anyone spends an allocation; changes nothing.

    SITE is one of the sites file, or a site folder (then Balsam is not asked). Looks at the folder's rules, the
    Balsam server, the site's agent and application, what the pool may ask for, the store, the image and its MPI,
    and with --here at two ranks. With --submit, if all that is well, it asks for nodes, runs a tiny job on two ranks
    and gives them back. Exits with 1 if there is a problem.
    """
    from happyneurons.hpc.check import CheckPlan, check_site

    if image and native:
        raise UserError("ranks run in an image or in this environment: give --image or --native, not both")
    if submit and (sites is None or not store):
        raise UserError("--submit needs the site's entry in the sites file, and a store: give --sites and --store")
    given = CheckPlan(site, site, store=store, image=image, native=native, here=here)
    if sites is not None:
        config, access, folder = balsam_site(site, sites)
        given = CheckPlan(site, folder, access, config.pool, store, image, native, here)
    found: list[Finding] = []
    for finding in check_site(given):
        _tell(found, finding, as_json)
    if submit and not any(finding.ok is False for finding in found):
        _tell(found, _trial(given, queue, wait_s, as_json), as_json)
    if as_json:
        print_json([{**asdict(finding), "word": finding.word} for finding in found])
    if any(finding.ok is False for finding in found):
        raise click.exceptions.Exit(EXIT_FAILED)


def _tell(found: list[Finding], finding: Finding, as_json: bool) -> None:
    found.append(finding)
    if not as_json:
        click.echo(f"{finding.word:8} {finding.what}: {finding.detail}")


def _trial(plan: CheckPlan, queue: str | None, wait_s: float, as_json: bool) -> Finding:
    """The whole way through the batch system."""
    from happyneurons.hpc.check import Finding
    from happyneurons.hpc.folders import load_site_folder
    from happyneurons.hpc.trial import run_trial

    assert plan.access is not None
    pool = plan.pool.model_copy(update={"queue": queue}) if queue else plan.pool
    try:
        told = run_trial(
            plan.name, load_site_folder(plan.folder), plan.access, pool, plan.store, wait_s=wait_s,
            seen=lambda text: click.echo(f"         {text}", err=True) if not as_json else None,
        )  # fmt: skip
    except HappyError as error:
        return Finding("a job of two ranks", False, str(error))
    return Finding("a job of two ranks", True, told)
