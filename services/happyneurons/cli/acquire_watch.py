"""`hpn acquire watch`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from happyneurons.cli.options import json_option, orchestrator_address, orchestrator_option
from happyneurons.errors import UserError

if TYPE_CHECKING:
    from happyneurons.acquisition.state import WatchState
    from happyneurons.acquisition.transfer import Mover
    from happyneurons.acquisition.watch import Event
    from happyneurons.acquisition.watch_layouts import Layout

GLOBUS = ("globus_source", "globus_target", "tiles_at")  # tiles_at says something without Globus, too


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--run", "run_id", required=True, help="The open run to feed.")
@orchestrator_option
@click.option("--pattern", help="Names of the tiles, such as '{z}_{row}_{col}.tif' [default: sections/…/section.json].")
@click.option("--tiles-per-section", type=click.IntRange(1), help="With --pattern: tiles of a finished section.")
@click.option("--pixel-size-nm", type=click.FloatRange(0, min_open=True), help="With --pattern.")
@click.option("--thickness-nm", type=click.FloatRange(0, min_open=True), help="With --pattern: of a section.")
@click.option("--overlap", default=0.1, show_default=True, help="With --pattern: share of a tile its neighbour shows.")
@click.option("--sections", metavar="Z0:Z1", help="With --pattern: the sections that there will be.")
@click.option("--settle-s", default=5.0, show_default=True, help="With --pattern: for so long no tile has changed.")
@click.option("--copy-to", metavar="URI", help="Copy tiles there first [default: compute nodes see FOLDER].")
@click.option("--globus-source", metavar="ENDPOINT:PATH", help="FOLDER as Globus sees it; moves tiles by Globus.")
@click.option("--globus-target", metavar="ENDPOINT:PATH", help="Where Globus moves them to.")
@click.option("--tiles-at", metavar="URI", help="Where compute nodes see FOLDER, or the target's path.")
@click.option("--globus-token", type=click.Path(path_type=Path), help="File of a login; see docs/acquisition.md.")
@click.option("--until-complete", is_flag=True, help="End the acquisition when all its sections are reported.")
@click.option("--once", is_flag=True, help="Report what is finished now, and stop.")
@click.option("--imaged-again", is_flag=True, help="Replace sections that the run knows with other tiles.")
@click.option("--state", "state_folder", type=click.Path(path_type=Path), help="[default: FOLDER/.hpn-watch]")
@click.option("--poll-s", default=1.0, show_default=True, help="Pause between looks at the folder.")
@json_option
def watch(
    folder: Path,
    run_id: str,
    orchestrator: str | None,
    until_complete: bool,
    once: bool,
    imaged_again: bool,
    state_folder: Path | None,
    poll_s: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Feed an open run with the sections that a microscope finishes in FOLDER.

    Each tile is read and checked before its section is reported. Stop it at any time (Ctrl-C); started
    again it goes on where it was.
    """
    address = orchestrator_address(orchestrator, None)
    if address is None:
        raise UserError("`hpn acquire watch` needs the run's orchestrator: give --orchestrator HOST:PORT")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; make it if the microscope has not begun")
    from happyneurons.acquisition.state import STATE_FOLDER, WatchState
    from happyneurons.acquisition.watch import Event, Options, Watcher
    from happyneurons.acquisition.watch_report import Reporter

    folder = folder.resolve()
    show = _shower(as_json)
    layout = _layout(folder, options)
    state = WatchState.open(state_folder or folder / STATE_FOLDER, run_id)

    def tell(text: str) -> None:
        show(Event("note", text))

    mover = _mover(folder, state, tell, options)
    reporter = Reporter(address, run_id, state, tell)
    watcher = Watcher(layout, mover, reporter, state, Options(until_complete, once, imaged_again, poll_s), show)
    try:
        with _stopping(watcher.stop):
            watcher.run()
    finally:
        reporter.close()


def _layout(folder: Path, options: dict[str, Any]) -> Layout:
    from happyneurons.acquisition.watch_layouts import OurLayout, PatternLayout

    needed = ("tiles_per_section", "pixel_size_nm", "thickness_nm")
    if options["pattern"] is None:
        given = [name for name in (*needed, "sections") if options[name] is not None]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} goes with --pattern; else acquisition.json says it")
        return OurLayout(folder)
    absent = [name for name in needed if options[name] is None]
    if absent:
        raise UserError(f"--pattern needs --{' and --'.join(name.replace('_', '-') for name in absent)}")
    if not 0 <= options["overlap"] < 1:
        raise UserError(f"--overlap {options['overlap']}: a share of a tile, at least 0 and below 1")
    return PatternLayout(
        folder, options["pattern"], tiles_per_section=options["tiles_per_section"],
        pixel_size_nm=options["pixel_size_nm"], thickness_nm=options["thickness_nm"], overlap=options["overlap"],
        sections=_range(options["sections"]), settle_s=options["settle_s"],
    )  # fmt: skip


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UserError(f"--sections {text}: write Z0:Z1, the first section and one past the last")
    return int(first), int(last)


def _mover(folder: Path, state: WatchState, tell: Callable[[str], None], options: dict[str, Any]) -> Mover:
    given = [name for name in GLOBUS if options[name] is not None]
    if options["copy_to"] is not None:
        if given:
            raise UserError(f"--copy-to and --{given[0].replace('_', '-')}: tiles are moved one way only")
        from happyneurons.acquisition.transfer import CopyToStore

        return CopyToStore(options["copy_to"], tell)
    if given in ([], ["tiles_at"]):
        from happyneurons.acquisition.transfer import InPlace

        return InPlace(folder, options["tiles_at"])
    if len(given) < len(GLOBUS):
        absent = [f"--{name.replace('_', '-')}" for name in GLOBUS if name not in given]
        raise UserError(f"moving by Globus needs {' and '.join(absent)}, too")
    from happyneurons.acquisition.globus import GlobusMover, Place, Route
    from happyneurons.acquisition.globus_login import transfer_client

    source = Place.parse(options["globus_source"], "--globus-source")
    target = Place.parse(options["globus_target"], "--globus-target")
    route = Route(folder, source, target, options["tiles_at"])
    return GlobusMover(lambda: transfer_client(options["globus_token"]), route, state, tell)


class _stopping:
    """In this block the first SIGINT or SIGTERM calls `stop`; the next one ends the process as usual."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop, self._before = stop, {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        self.__exit__()
        self._stop()


def _shower(as_json: bool) -> Callable[[Event], None]:
    """Lines for people, or one JSON object a line; seen at once, also through a pipe."""

    def show(event: Event) -> None:
        click.echo(json.dumps({"event": event.kind, "message": event.text, **event.data}) if as_json else event.text)
        sys.stdout.flush()

    return show
