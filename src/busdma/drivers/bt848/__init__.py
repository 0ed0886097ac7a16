"""The Brooktree Bt848 and Bt878 frame grabbers: continuous capture into memory that is looked at window by window.

`core` is the driver, `layout` its registers and its RISC program, `pci` the bus front end.
"""
