"""`hpn publish`: results to a place that browsers can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from happyneurons.cli.options import json_option, orchestrator_option, print_json, store_option
from happyneurons.errors import UserError


@click.command()
@click.argument("targets", metavar="RUN|URI…", nargs=-1, required=True)
@click.option("--to", required=True, metavar="URI", help="s3://…, gs://…, az://…, a folder, globus://COLLECTION/PATH.")
@click.option("--url", metavar="URL", help="What browsers read that place by [default: what its service says].")
@click.option("--only", metavar="JOB[.OUTPUT]", multiple=True, help="Of a run, only this (may be repeated).")
@click.option("--all", "everything", is_flag=True, help="Of a run, also its intermediate results.")
@click.option("--title", help="What viewers show [default: the run].")
@click.option("--viewer", "page", metavar="URL", help="Neuroglancer page of the link [default: the public one].")
@click.option(
    "--threads", default=16, show_default=True, type=click.IntRange(1, 256), help="Files under way at a time."
)
@click.option("--check", is_flag=True, help="Read again what is there already, every file of it.")
@click.option("--prune", is_flag=True, help="Remove results that were published there before and are not these.")
@click.option("--staging", type=click.Path(path_type=Path), help="Globus: folder for what is sent; keep it.")
@click.option("--globus-source", metavar="ENDPOINT:PATH", help="Globus: that folder as Globus sees it.")
@click.option("--globus-token", type=click.Path(path_type=Path), help="Globus: file of a login (docs/acquisition.md).")
@orchestrator_option
@store_option
@json_option
def publish(
    targets: tuple[str, ...],
    to: str,
    url: str | None,
    only: tuple[str, ...],
    everything: bool,
    title: str | None,
    page: str | None,
    threads: int,
    check: bool,
    prune: bool,
    staging: Path | None,
    globus_source: str | None,
    globus_token: Path | None,
    orchestrator: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Copy a run's results, or artifacts by URI, to a place that browsers can read.

    Only what is new is copied, and every file is read back. Prints a Neuroglancer link; `hpn view URL`
    shows the place, too, beside a run say. May be interrupted and given again.
    """
    from happyneurons.cli.bars import counting_bar
    from happyneurons.cli.view import find_panels
    from happyneurons.publish import public_url, publishable
    from happyneurons.publish import publish as copy
    from happyneurons.publish.collection import collection_of
    from happyneurons.publish.places import browser_problem
    from happyneurons.store.documents import normalize_uri
    from happyneurons.viewer.links import DEMO
    from happyneurons.viewer.published import INDEX

    panels, _ = find_panels(targets, only, everything, None, orchestrator, store)
    if len(panels) > 1:
        raise UserError("publish runs one by one, each to a place of its own; `hpn view` shows places side by side")
    layers = {name: a for name, a in panels[0].layers.items() if publishable(a)}
    say: Callable[[str], None] = (lambda text: None) if as_json else lambda text: click.echo(text, err=True)
    target = collection_of(to)
    send: Callable[[], int] | None = None
    if target is not None:
        if prune:
            raise UserError("--prune does not reach into a Globus collection: delete old folders below data/ there")
        if staging is None or globus_source is None:
            raise UserError("a Globus collection needs --staging FOLDER and --globus-source ENDPOINT:PATH, that folder")
        staging = staging.resolve()
        staging.mkdir(parents=True, exist_ok=True)
        sender = _sender(staging, globus_source, target, globus_token, say)
        url, send, to = url or sender.https_url(), sender.send, staging.as_uri()
        sender.resume()
    elif staging is not None or globus_source is not None:
        raise UserError("--staging and --globus-source go with --to globus://COLLECTION/PATH")
    to = normalize_uri(to)
    url = (url or public_url(to) or "").rstrip("/")
    if url and not url.startswith(("https://", "http://")):
        raise UserError(f"--url {url}: expected https://…")
    with counting_bar("files", quiet=as_json) as told:
        done = copy(
            layers, to, url=url, title=title if title is not None else panels[0].title, viewer=page or DEMO,
            threads=threads, prune=prune, check=check,
            on_file=told,
        )  # fmt: skip
    sent = send() if send is not None else None
    problem = browser_problem(f"{url}/{INDEX}") if url else None
    counts = done.counts
    if as_json:
        answer: dict[str, Any] = {
            "place": done.place, "url": done.url, "link": done.link, "layers": dict(done.layers),
            "counts": {**vars(counts), "files": counts.files}, "browser_problem": problem,
        }  # fmt: skip
        print_json(answer if sent is None else {**answer, "sent": sent})
        return
    click.echo(
        f"{counts.files} files, {counts.bytes / 1e6:.1f} MB at {done.place}: {counts.written} written "
        f"({counts.written_bytes / 1e6:.1f} MB) and read back, {counts.files - counts.written} there already"
        + (f", {counts.removed} old ones removed" if counts.removed else "")
        + (f"; {sent} sent by Globus" if sent is not None else "")
    )
    if done.link:
        click.echo(done.link)
    elif not url:
        say("give --url https://…, the address that browsers read that place by, for a Neuroglancer link")
    if problem:
        say(f"but: {problem}")


def _sender(staging: Path, source: str, target: Any, token: Path | None, say: Callable[[str], None]) -> Any:
    from happyneurons.acquisition.globus import Place, explain
    from happyneurons.acquisition.globus_login import transfer_client
    from happyneurons.publish.collection import Sender

    place = Place.parse(source, "--globus-source")
    try:
        import globus_sdk
    except ImportError:
        raise UserError("publishing to Globus needs globus-sdk: pip install 'happyneurons[globus]'") from None
    try:
        client = transfer_client(token)
    except globus_sdk.GlobusError as error:
        raise UserError(explain(error).text) from error
    return Sender(client, staging, place, target, say)
