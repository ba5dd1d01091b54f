"""Elastic alignment of a section stack: sections → pairs → solve → render."""
