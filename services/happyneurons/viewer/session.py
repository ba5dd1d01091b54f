"""Looking at artifacts: a server for their data, and links to Neuroglancer pages that show them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from happyneurons.store.artifacts import Artifact
from happyneurons.viewer.links import DEMO, link, neuroglancer_state
from happyneurons.viewer.sources import source_of
from happyneurons.viewer.volume_server import Observer, VolumeServer

SHOWN = ("section_stack", "image_volume", "mask", "segmentation", "mesh_layer", "skeleton_layer")


@dataclass(frozen=True)
class Viewer:
    """A running viewer. `url`: the page on this machine; `demo_url`: the public page with the same data."""

    server: VolumeServer
    artifacts: Mapping[str, Artifact]
    state: Mapping[str, Any]
    url: str
    demo_url: str

    def stop(self) -> None:
        self.server.stop()

    def wait(self) -> None:
        """Until `stop()`."""
        self.server.wait()


def start_viewer(
    artifacts: Mapping[str, Artifact],
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    token: str | None = "",
    selected: Sequence[int] | None = None,
    base: str = DEMO,
    observer: Observer | None = None,
) -> Viewer:
    """Serve artifacts and the Neuroglancer client until `stop()`.

    artifacts: layer name → artifact. token: first part of all paths; "" makes a random one, None
    serves without. Raises UserError (nothing to show, port taken, client not installed).
    """
    shown = {name: a for name, a in artifacts.items() if a.kind in SHOWN}
    roots = {name: source_of(a.data_uri, segmentation=a.kind == "segmentation") for name, a in shown.items()}
    server = VolumeServer(
        roots, host=host, port=port, token=secrets.token_urlsafe(9) if token == "" else token, observer=observer
    )
    try:
        state = neuroglancer_state(shown, server.data_url, selected=selected)
        viewer = Viewer(server, shown, state, server.page_url(state), link(state, base))
    except BaseException:
        server.close()
        raise
    server.start()
    return viewer
