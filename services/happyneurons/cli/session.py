"""Whom a command talks to: an orchestrator that runs, or one that the command brings along.

There is one way to talk, gRPC. A command that only reads needs no server: it serves itself the
store, without driving anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from happyneurons.cli.options import orchestrator_address, store_uri
from happyneurons.client.client import Client
from happyneurons.errors import UserError
from happyneurons.rpc.access import PLAIN
from happyneurons.store.documents import Store, local_path


@contextlib.contextmanager
def reading(orchestrator: str | None, store: str | None) -> Iterator[Client]:
    """A client for commands that change nothing."""
    address = orchestrator_address(orchestrator, store)
    if address is not None:
        with Client(address) as client:
            yield client
        return
    from happyneurons.orchestrator.server import OrchestratorServer

    with OrchestratorServer(existing_store(store), drive=False) as server, Client(server.address, PLAIN) as client:
        yield client


@contextlib.contextmanager
def deciding(orchestrator: str | None, command: str) -> Iterator[Client]:
    """A client for commands that change a run: somebody must be there to act on it."""
    address = orchestrator_address(orchestrator, None)
    if address is None:
        raise UserError(
            f"`hpn {command}` needs a running orchestrator: give --orchestrator HOST:PORT (or HPN_ORCHESTRATOR); "
            "`hpn serve orchestrator` starts one, and `hpn run` prints the address of its own"
        )
    with Client(address) as client:
        yield client


def existing_store(given: str | None) -> Store:
    """The store that counts; one that does not exist is an error, not a new store."""
    uri = store_uri(given)
    path = local_path(uri)
    if path is not None and not path.is_dir():
        raise UserError(f"there is no store at {path}: give --store URI, or --orchestrator HOST:PORT")
    return Store(uri)
