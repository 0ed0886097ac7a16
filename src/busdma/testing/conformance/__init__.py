"""The conformance suite: one test for each promise of the design, for any machine.

::

    pytest --pyargs busdma.testing.conformance --busdma-machine GLOB

The tests know a machine only by what every machine has: its devices' tags, its address spaces, its drivers' disks and
echoes. What a device must see is shown by devices: data goes to a disk and comes back.
"""
