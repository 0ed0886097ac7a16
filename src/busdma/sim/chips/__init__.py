"""Single devices: test engine, cipher card, Ethernet, frame grabber."""
