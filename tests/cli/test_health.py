"""`hpn health` says whether servers answer, by its exit code, too."""

from __future__ import annotations

import json

from click.testing import CliRunner

from happyneurons.cli.main import main
from happyneurons.rpc.server import RpcServer


def test_serving_stopping_and_away() -> None:
    server = RpcServer([], "127.0.0.1:0")
    server.start()
    done = CliRunner().invoke(main, ["health", server.address, "--json"])
    assert (done.exit_code, json.loads(done.output)) == (0, {server.address: "SERVING"})
    unknown = CliRunner().invoke(main, ["health", server.address, "--service", "no.such.Service"])
    assert unknown.exit_code == 75
    assert "NotFoundError" in unknown.output
    server.stop(0)
    done = CliRunner().invoke(main, ["health", server.address])
    assert done.exit_code == 75
    assert "does not answer" in done.output
    assert CliRunner().invoke(main, ["health", "nowhere"]).exit_code == 2
