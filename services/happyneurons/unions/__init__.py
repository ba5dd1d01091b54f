"""Connected components over more segments than one process could hold.

A volume is cut into cells (subvolumes, blocks), each with segments of its own and with pairs that
belong together in two neighbouring cells. The union-find over all of them is done in groups of
cells that grow level by level: :mod:`.tree` says which, :mod:`.joining` what a group computes,
:mod:`.rounds` makes rounds of it that stages use, :mod:`.output` the volume that it ends in.
"""
