"""For tests of drivers and of back ends: a pytest plugin, and the conformance suite.

With busdma installed, a test that takes ``machine`` runs on a fresh machine, once for each machine that fits::

    import pytest

    @pytest.mark.busdma(drivers="edu", check=True)
    def test_my_driver(machine):
        driver = MyDriver(machine.attachment("edu0"))

``pytest --pyargs busdma.testing.conformance --busdma-machine GLOB`` shows of a machine that it keeps every promise of
the design. docs/testing.md is the guide to both.
"""
