"""The contract of a back end: memory, address spaces, the bus with its registers, and interrupts."""
