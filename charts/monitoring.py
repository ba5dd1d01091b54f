"""Prometheus on a laptop, for looking: `make monitoring`.

Scrapes the servers that it is given, with the alert rules and, as pages of graphs, the boards of this repository.
Everything it writes is in one folder; Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

import yaml
from charts.boards.__main__ import BOARDS
from charts.boards.panels import Board
from charts.boards.queries import resolved

CHART = Path(__file__).resolve().parent / "happyneurons"
RULES = CHART / "rules" / "happyneurons.yaml"
RETENTION = "32d"  # budgets are counted over 30 days
HOW_TO_INSTALL = (
    "monitoring: no `prometheus` in PATH. Debian and Ubuntu: apt-get install prometheus; macOS: brew install "
    "prometheus; others: unpack a release of https://prometheus.io/download and put it into PATH"
)


class NotInstalledError(Exception):
    """There is no Prometheus."""


def prometheus() -> str:
    """The program. Raises NotInstalledError, which says how to come by one."""
    found = shutil.which("prometheus")
    if found is None:
        raise NotInstalledError(HOW_TO_INSTALL)
    return found


def config(targets: Mapping[str, Sequence[str]], rules: Path = RULES, interval: str = "5s") -> str:
    """Prometheus's configuration. targets: job name → host:port of each server's metrics."""
    document = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]} for job, addresses in targets.items()
        ],
    }
    return yaml.safe_dump(document, sort_keys=False)


def command(program: str, folder: Path, address: str) -> list[str]:
    """Prometheus with `folder`/prometheus.yml, data beside it, listening on host:port."""
    return [
        program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}", f"--storage.tsdb.retention.time={RETENTION}", "--log.level=warn",
    ]  # fmt: skip


def graphs(board: Board, base: str) -> str:
    """Address of a board's queries as a page of graphs in Prometheus itself."""
    fields: list[tuple[str, str]] = []
    queries = [query.expr for panel in board.panels() for query in panel.queries]
    for i, expr in enumerate(dict.fromkeys(queries)):
        fields += [(f"g{i}.expr", resolved(expr)), (f"g{i}.tab", "0"), (f"g{i}.range_input", "1h")]
    return f"{base}/graph?{urlencode(fields)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="monitoring", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("targets", nargs="*", default=["127.0.0.1:9090"], help="metrics addresses [127.0.0.1:9090]")
    parser.add_argument("--address", default="127.0.0.1:9099", help="where Prometheus listens [127.0.0.1:9099]")
    parser.add_argument("--folder", type=Path, help="where its data are kept [a temporary folder]")
    given = parser.parse_args(arguments)
    wrong = [t for t in given.targets if not t.rpartition(":")[2].isdigit()]
    if wrong:
        parser.error(f"{wrong[0]}: expected host:port, as the servers' option --metrics has it")
    try:
        program = prometheus()
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="hpn-prometheus-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(config({"happyneurons": given.targets}))
        base = f"http://{given.address}"
        pages = folder / "boards.html"
        links = "".join(f'<li><a href="{graphs(b, base)}">{b.title}</a>: {b.text}</li>\n' for b in BOARDS)
        pages.write_text(f"<title>HAPPYNeurons</title><ul>\n{links}</ul>\n")
        print(f"Prometheus: {base} (targets: {base}/targets, alerts: {base}/alerts)")
        print(f"boards as pages of graphs: file://{pages}; for Grafana import charts/happyneurons/dashboards/*.json")
        print(f"it scrapes {', '.join(given.targets)}; Ctrl-C ends it", flush=True)
        process = subprocess.Popen(command(program, folder, given.address))
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            return 0


if __name__ == "__main__":
    sys.exit(main())
