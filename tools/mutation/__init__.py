"""The account of mutants: what becomes of a driver that syncs, loads or unloads wrongly, under the DMA checker.

Every call of ``sync``, ``load*``, ``transfer`` and ``unload`` in `busdma.drivers` is made wrong in every way that makes
a difference, one at a time, and jobs are run that execute it. `sites` finds the calls and leads them through a switch,
`switch` makes them wrong, `jobs` are what they are put to, `runs` runs one, and `account` adds up.
"""
