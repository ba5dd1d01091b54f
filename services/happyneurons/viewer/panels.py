"""Several results side by side: a panel for each, with the same place and the same scale in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from happyneurons.store.artifacts import Artifact
from happyneurons.viewer.links import neuroglancer_state

ADDRESS_OF = Callable[[Artifact], str]
"""Artifact → URL under which its folder is served."""
NARROW = {"crossSectionScale": 1.4, "projectionScale": 1.8}


@dataclass(frozen=True)
class Panel:
    """What one panel shows. layers: layer name → artifact, the lowest first."""

    title: str
    layers: Mapping[str, Artifact]


def panels_state(
    panels: Sequence[Panel], address: ADDRESS_OF, *, selected: Sequence[int] | None = None, layout: str = "4panel"
) -> dict[str, Any]:
    """State that shows panels in a row. Neuroglancer links their position, scale and orientation.

    A layer that is the same in all panels is there once and shown in each; others get their panel's title
    before their name. layout: of each panel, one of Neuroglancer's (4panel, xy, xy-3d, 3d, …).
    Raises UserError if a panel has nothing that can be shown.
    """
    states = [
        neuroglancer_state(p.layers, lambda name, p=p: address(p.layers[name]), selected=selected, layout=layout)  # type: ignore[misc]
        for p in panels
    ]
    if len(states) == 1:
        return states[0]
    common = [layer for layer in states[0]["layers"] if all(layer in s["layers"] for s in states[1:])]
    layers: list[dict[str, Any]] = list(common)
    children = []
    for panel, state in zip(panels, states, strict=True):
        own = []
        for layer in state["layers"]:
            if layer not in common:
                layer = {**layer, "name": f"{panel.title}: {layer['name']}"}
                layers.append(layer)
            own.append(layer["name"])
        children.append({"type": "viewer", "layers": own, "layout": layout})
    # Narrower panels see as much of the volume only from farther away.
    scales = {key: states[0][key] * factor for key, factor in NARROW.items() if key in states[0]}
    return {
        **states[0],
        **scales,
        "title": " | ".join(panel.title for panel in panels),
        "layers": layers,
        "layout": {"type": "row", "children": children},
    }
