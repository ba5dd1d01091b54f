"""Looking at results: Neuroglancer links, a server of volumes, pictures of neurons."""

from happyneurons.viewer.links import link, neuroglancer_state
from happyneurons.viewer.panels import Panel, panels_state
from happyneurons.viewer.render import render_neurons
from happyneurons.viewer.session import Viewer, published_state, start_viewer
from happyneurons.viewer.sources import source_of
from happyneurons.viewer.volume_server import VolumeServer

__all__ = [
    "Panel",
    "Viewer",
    "VolumeServer",
    "link",
    "neuroglancer_state",
    "panels_state",
    "published_state",
    "render_neurons",
    "source_of",
    "start_viewer",
]
