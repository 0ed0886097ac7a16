"""NVM Express controllers: queues in memory, PRPs, 64-bit addresses.

`layout` is the specification's structures, `prp` turns segments into PRPs, `queue` is a pair of queues, `core` the
driver, `pci` the bus front end.
"""
