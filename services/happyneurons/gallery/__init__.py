"""A page for a run: its pictures, figures, parameters and provenance as static files."""

from happyneurons.gallery.page import write_gallery
from happyneurons.gallery.pictures import draw_pictures

__all__ = ["draw_pictures", "write_gallery"]
