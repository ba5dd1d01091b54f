"""Looking at artifacts: a server for their data, and links to Neuroglancer pages that show them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from happyneurons.errors import UserError
from happyneurons.store.artifacts import Artifact
from happyneurons.store.layers import is_web
from happyneurons.viewer.links import DEMO, has_data, link
from happyneurons.viewer.panels import Panel, panels_state
from happyneurons.viewer.sources import source_of
from happyneurons.viewer.volume_server import Observer, VolumeServer

SHOWN = ("section_stack", "image_volume", "mask", "segmentation", "mesh_layer", "skeleton_layer", "table")


@dataclass(frozen=True)
class Viewer:
    """A running viewer. `url`: the page on this machine; `demo_url`: the page of another viewer with the same data.

    `artifacts`: those of the first panel; `roots`: artifact's URI → name of its root on the server.
    """

    server: VolumeServer
    artifacts: Mapping[str, Artifact]
    state: Mapping[str, Any]
    url: str
    demo_url: str
    roots: Mapping[str, str]

    def data_url(self, name: str) -> str:
        """Where the data of a layer of the first panel is served."""
        return _address(self.server, self.roots, self.artifacts[name])

    def stop(self) -> None:
        self.server.stop()

    def wait(self) -> None:
        """Until `stop()`."""
        self.server.wait()


def start_viewer(
    shown: Mapping[str, Artifact] | Sequence[Panel],
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    token: str | None = "",
    selected: Sequence[int] | None = None,
    layout: str = "4panel",
    base: str = DEMO,
    observer: Observer | None = None,
) -> Viewer:
    """Serve artifacts and the Neuroglancer client until `stop()`.

    shown: layer name → artifact, or panels that stand side by side. token: first part of all paths; ""
    makes a random one, None serves without. base: the other viewer of `demo_url`. What was published
    (data at https://…) is read from where it is. Raises UserError (nothing to show, port taken, client
    not installed).
    """
    given = [Panel("", shown)] if isinstance(shown, Mapping) else list(shown)
    panels = [Panel(p.title, {n: a for n, a in p.layers.items() if a.kind in SHOWN}) for p in given]
    names = _root_names(panels)
    roots = {
        names[a.uri]: source_of(a.data_uri, segmentation=a.kind == "segmentation")
        for panel in panels
        for a in panel.layers.values()
        if a.uri in names
    }
    server = VolumeServer(
        roots, host=host, port=port, token=secrets.token_urlsafe(9) if token == "" else token, observer=observer
    )
    try:
        state = panels_state(panels, lambda a: _address(server, names, a), selected=selected, layout=layout)
        viewer = Viewer(server, panels[0].layers, state, server.page_url(state), link(state, base), names)
    except BaseException:
        server.close()
        raise
    server.start()
    return viewer


def published_state(panels: Sequence[Panel], layout: str = "4panel") -> dict[str, Any]:
    """State of panels whose data all lies where browsers can read it. Raises UserError if some does not."""

    def address(artifact: Artifact) -> str:
        if not is_web(artifact.data_uri) and has_data(artifact):
            raise UserError(f"{artifact.uri}: not published; its data has no address that others can read")
        return artifact.data_uri

    return panels_state(panels, address, layout=layout)


def _address(server: VolumeServer, roots: Mapping[str, str], artifact: Artifact) -> str:
    return server.data_url(roots[artifact.uri]) if artifact.uri in roots else artifact.data_uri


def _root_names(panels: Sequence[Panel]) -> dict[str, str]:
    """Artifact's URI → name of its root on the server: its layer's name, with a number if that is taken."""
    names: dict[str, str] = {}
    for panel in panels:
        for name, artifact in panel.layers.items():
            if artifact.uri in names or not has_data(artifact) or is_web(artifact.data_uri):
                continue
            number, free = 1, name
            while free in names.values():
                number += 1
                free = f"{name}-{number}"
            names[artifact.uri] = free
    return names
