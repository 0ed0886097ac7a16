"""The PCnet family of Ethernet controllers: AMD's Am79C970A and its relatives, with rings of descriptors.

`core` is the driver, `chip` its registers, `ring`, `transmit` and `receive` its rings; `pci` is the bus front end.
"""
