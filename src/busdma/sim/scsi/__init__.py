"""SCSI: controllers, the DMA engines in front of them, the bus, and the targets on it."""
