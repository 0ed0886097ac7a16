"""The edu device: QEMU's teaching device, a DMA engine with 4096 bytes and a factorial unit.

`core` is the driver, `pci` the bus front end.
"""
