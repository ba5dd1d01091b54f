"""Montage: the tiles of a section become one picture."""
