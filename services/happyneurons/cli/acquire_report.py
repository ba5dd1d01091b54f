"""`hpn acquire report` and `hpn acquire end`: feeding an open run by hand, or from a script."""

from __future__ import annotations

from pathlib import Path

import click

from happyneurons.cli.options import json_option, orchestrator_option, print_json
from happyneurons.cli.session import deciding
from happyneurons.client.plain import plain


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("sections", metavar="SECTION.json…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--imaged-again", is_flag=True, help="These tiles replace those that were reported before.")
@click.option("--last", is_flag=True, help="No more sections will come after these.")
@orchestrator_option
@json_option
def report(
    run_id: str, sections: tuple[Path, ...], imaged_again: bool, last: bool, orchestrator: str | None, as_json: bool
) -> None:
    """Tell an open run of sections whose tiles have arrived.

    SECTION.json holds a section's fields (docs/acquisition.md), or is the section.json of an
    acquisition folder. Repeating it is harmless.
    """
    answers = []
    with deciding(orchestrator, "acquire report") as client:
        for path in sections:
            answer = client.report_section(run_id, path, imaged_again=imaged_again)
            answers.append(answer)
            if not as_json:
                again = f", version {answer.version}" if answer.version > 1 else ""
                click.echo(f"{path}: {'was known' if answer.known else 'reported'}{again}")
        if last:
            client.end_acquisition(run_id)
    if as_json:
        print_json([plain(answer) for answer in answers])


@click.command()
@click.argument("run_id", metavar="RUN")
@orchestrator_option
@json_option
def end(run_id: str, orchestrator: str | None, as_json: bool) -> None:
    """Tell an open run that no more sections will come. It then joins what it has."""
    with deciding(orchestrator, "acquire end") as client:
        answer = client.end_acquisition(run_id)
    print_json(plain(answer)) if as_json else click.echo(f"ended with {answer.sections_reported} sections")
