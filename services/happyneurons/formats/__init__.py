"""Volumes in the formats of the field: one reader and one writer for each, none for pairs.

`open_reader` and `make_writer` (module `registry`) find the format; what they give speaks of boxes of
voxels in (z, y, x) order and absolute coordinates, whatever the format's own axis order is. Which
voxels one call of a writer may write is its own affair (`unit_zyx`): whole files or shards, so that
two processes never write to one.
"""
