"""The NCR 53C9x family of SCSI chips: 53C90, 53C94 to 53C96, FAS100A, Am53C974. One core, and a DMA engine a bus.

`chip` is the registers, `engine` what a DMA engine beside the chip must do, `nexus` one command, `sequencer` the SCSI
bus as the chip shows it, `core` the driver. `sbus`, `jazz` and `pci` are the front ends, each with its engine.
"""
