"""Adaptec AHA-1540 and AHA-1542: ISA SCSI host adapters, bus masters with 24 address lines.

`layout` is the data sheet's structures, `core` the driver, `isa` the bus front end. What all adapters with mailboxes
have in common is in `busdma.drivers.mailbox_host` and `busdma.drivers.mailbox_port`.
"""
