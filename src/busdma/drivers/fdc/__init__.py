"""A PC's floppy disk controller: Intel 82077AA, and its ancestors down to the uPD765; its DMA is the 8237's.

`layout` is the data sheet's words, `chip` the registers and their handshake, `core` the driver, `disk` what its users
see, `isa` the bus front end.
"""
