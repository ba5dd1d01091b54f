"""`hpn site init`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from happyneurons.cli.options import json_option, print_json
from happyneurons.errors import UserError


@click.command(name="init")
@click.argument("folder", metavar="NAME")
@click.option("--api", required=True, metavar="URL", help="The Balsam server.")
@click.option("--path", type=click.Path(path_type=Path), required=True, help="Where the site is to be: a new folder.")
@click.option("--store", "stores", multiple=True, required=True, metavar="URI", help="A store that jobs may use.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of STAGE.sif.")
@click.option("--native", is_flag=True, help="No containers: run ranks in this environment.")
@click.option("--balsam-python", type=click.Path(path_type=Path), required=True, help="Python with Balsam.")
@click.option("--balsam-name", default="", metavar="NAME", help="The site's name at the server [happyneurons-NAME].")
@click.option("--project", "projects", multiple=True, help="Project that batch jobs are charged to.")
@click.option("--queue", help="Allow this queue only.")
@click.option(
    "--client-file", type=click.Path(path_type=Path), default=Path("~/.balsam/client.yml"), show_default=True,
    help="Where Balsam keeps the token.",
)  # fmt: skip
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="A further variable for the ranks.")
@click.option("--sync-s", type=click.IntRange(min=1), default=10, show_default=True, help="Looks at the batch system.")
@click.option("--idle-s", type=click.IntRange(min=1), default=300, show_default=True, help="A launcher without work.")
@json_option
def init(
    folder: str, api: str, path: Path, stores: tuple[str, ...], images: Path | None, native: bool,
    balsam_python: Path, balsam_name: str, projects: tuple[str, ...], queue: str | None, client_file: Path,
    variables: tuple[str, ...], sync_s: int, idle_s: int, as_json: bool,
) -> None:  # fmt: skip
    """Make a Balsam site of the site folder NAME, or renew it.

    NAME is one of hpc/sites, or a path. Needs a token in --client-file (`balsam login`), or BALSAM_USER and
    BALSAM_PASSWORD. Asks nothing.
    """
    from happyneurons.hpc.folders import load_site_folder
    from happyneurons.hpc.init import SitePlan, init_site

    if native == (images is not None):
        raise UserError("say how ranks are run: --images DIR for containers, or --native for this environment")
    environment = {}
    for item in variables:
        name, separator, value = item.partition("=")
        if not separator:
            raise UserError(f"--env {item}: write NAME=VALUE")
        environment[name] = value
    made = init_site(
        SitePlan(
            folder=load_site_folder(folder), api=api.rstrip("/"), path=path.expanduser().absolute(), stores=stores,
            images=None if images is None else images.expanduser().absolute(), name=balsam_name, projects=projects,
            balsam_python=balsam_python.expanduser().absolute(), queue=queue, environment=environment, sync_s=sync_s,
            client_file=client_file.expanduser().absolute(), idle_s=idle_s,
        )
    )  # fmt: skip
    if as_json:
        print_json({**asdict(made), "path": str(made.path)})
        return
    click.echo(f"{'made' if made.created else 'renewed'} the site {made.name} ({made.site_id}) in {made.path}")
    click.echo(f"start its agent:  {made.path}/hpn-site start")
    click.echo("and add to the sites file:\n")
    click.echo(made.sites_entry)
