"""The DES card of Thorpe's paper, which encrypts from one scatter/gather list to another.

`core` is the driver; `pci` and `isa` are the bus front ends.
"""
