"""`hpn annotate`: to and from a WEBKNOSSOS server, where people are, not on compute nodes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from happyneurons.cli.options import json_option, print_json
from happyneurons.errors import UserError


@click.group()
def annotate() -> None:
    """Datasets to a WEBKNOSSOS server, annotations back (docs/annotate.md).

    Needs HPN_WEBKNOSSOS_PYTHON, the Python of an environment with webknossos, and WK_TOKEN or WK_TOKEN_FILE.
    """


@annotate.command()
@click.argument("dataset")
@click.option("--url", required=True, metavar="URL", help="The server, e.g. https://webknossos.org.")
@click.option("--name", metavar="NAME", help="Its name there [default: its own; annotate-pull checks it].")
@json_option
def upload(dataset: str, url: str, name: str | None, as_json: bool) -> None:
    """Upload DATASET, a folder that annotate-push wrote, or its artifact (…/manifest.json#dataset)."""
    from happyneurons.annotations import server
    from happyneurons.store.artifacts import load_artifact
    from happyneurons.store.documents import local_path

    uri = str(load_artifact(dataset).properties["uri"]) if "/manifest.json#" in dataset else dataset
    folder = local_path(uri)
    if folder is None:
        raise UserError(f"{uri}: the client uploads folders of this machine; push to one (params.target), or copy it")
    if name is None:
        try:
            name = str(json.loads((folder / "datasource-properties.json").read_bytes())["id"]["name"])
        except (OSError, ValueError, LookupError, TypeError):
            name = folder.name
    address = server.upload(folder, name, url)
    print_json({"url": address}) if as_json else click.echo(address)


@annotate.command()
@click.argument("annotation")
@click.argument("target")
@json_option
def download(annotation: str, target: str, as_json: bool) -> None:
    """Download ANNOTATION, an address such as https://webknossos.org/annotations/ID, to TARGET, a .zip."""
    from happyneurons.annotations import server

    server.download(annotation, Path(target))
    print_json({"file": target}) if as_json else click.echo(target)
