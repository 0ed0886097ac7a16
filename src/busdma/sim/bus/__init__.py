"""Buses: where masters reach memory by bus address, and the CPU reaches registers."""
