"""Sections → a chunked volume with its pyramid."""
