"""NVM Express controllers: queues in memory, PRPs, 64-bit addresses.

`layout` is the specification's structures, `prp` turns segments into PRPs, `queue` is a pair of queues, `shadow` their
doorbells in memory, `reaper` rings them and takes completions, `core` is the driver, `pci` the bus front end.
"""
