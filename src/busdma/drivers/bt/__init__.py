"""BusLogic MultiMaster SCSI host adapters in their own 32-bit mode.

`layout` is the data sheet's structures, `core` the driver, `vlb` the front end for the VESA local bus with its bug.
What all adapters with mailboxes have in common is in `busdma.drivers.mailbox_host` and `busdma.drivers.mailbox_port`.
"""
