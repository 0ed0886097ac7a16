"""QEMU's machine models as a back end: device models that nobody here wrote, driven without a guest.

``process``: a QEMU that runs, and ends when this program does. ``qtest``: registers, ports and interrupt lines, over
the protocol of QEMU's own device tests. ``ram``: the guest's memory, which is ours too. ``monitor``: QMP.
"""
