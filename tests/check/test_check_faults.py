"""Mistakes other than a sync, load or unload that is missing: each is planted, and each is found by its name."""

from __future__ import annotations

import pytest

from busdma.runtime import by_name
from busdma.sync import POSTREAD, POSTWRITE, PREREAD, PREWRITE, SyncOp
from check import planted_transfers, planted_upkeep
from check.bench import FROM, Bench
from check.planted import MISTAKES, SIZE

MODULES = (planted_transfers, planted_upkeep)  # which enter the mistakes


# What is found elsewhere, if it is not the same; None: the mistake cannot be made there.
TRANSLATED: dict[str, str | None] = {
    "cpu_stores_what_a_device_reads_from_bounce_pages": None,  # the device does not reach those of another bus
    "cpu_stores_what_a_device_is_to_write_into_bounce_pages": None,
    "device_writes_into_a_bounce_page_late": None,
    "device_mixes_up_the_lengths_of_segments": None,  # there is only one
    "device_is_given_a_virtual_address": "no-answer",
    "device_reads_from_address_zero_as_it_was_never_programmed": "no-answer",
}
STANDING: dict[str, str | None] = {
    "cleared_translations_are_not_flushed": "after-unload",  # they are not cleared either
    "too_few_translations_are_flushed": "after-unload",
    "stale_translation_reaches_what_another_map_has_loaded": None,
}
CACHED: dict[str, str | None] = {
    "device_begins_too_early": "no-answer",  # it begins in a cache line of somebody else's, so it is bounced
}
MACHINES: dict[str, tuple[dict[str, bool], dict[str, str | None]]] = {
    "plain": ({}, {}),
    "translated": ({"remap": True}, TRANSLATED),
    "standing": ({"remap": True, "standing": True}, TRANSLATED | STANDING),
    "cached": ({"remap": True, "caches": True}, TRANSLATED | CACHED),
}


@pytest.mark.parametrize("kind", MACHINES)
@pytest.mark.parametrize("name", MISTAKES)
def test_found(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake, labels, options = MISTAKES[name]
    more, elsewhere = MACHINES[kind]
    if name in elsewhere:
        label = elsewhere[name]
        if label is None:
            return
        labels = frozenset((label,))
    with Bench(**options | more) as bench:  # type: ignore[arg-type]
        seen = mistake(bench, monkeypatch)
    assert set(bench.labels()) == labels, str(bench.checker.findings)
    assert (seen is None) == bool(labels)
    if seen is not None:
        assert not any(seen.seen[at : at + 16] in right for right in seen.right for at in range(0, len(seen.seen), 16))


#: what is only known of a device's own accesses, and so of no machine that does not tell what devices do
BY_DEVICES = {
    "after-unload",
    "missing-postread",
    "missing-preread",
    "missing-prewrite",
    "never-loaded",
    "no-answer",
    "outside-map",
    "stale-translation",
    "wrong-way",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_found_where_nobody_tells_what_devices_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake, labels, options = MISTAKES[name]
    with Bench(**options, watched=False) as bench:  # type: ignore[arg-type]
        mistake(bench, monkeypatch)
    assert set(bench.labels()) == labels - BY_DEVICES, str(bench.checker.findings)


@pytest.mark.parametrize(("pre", "post"), [(PREWRITE, POSTWRITE), (PREREAD, POSTREAD)])
def test_a_missing_pre_is_found_at_the_post_where_nobody_tells_what_devices_do(pre: SyncOp, post: SyncOp) -> None:
    with Bench(watched=False) as bench:
        map = bench.loaded(bench.high(SIZE))
        map.sync(pre, 0, 100)
        map.sync(post)
        map.unload()
    assert bench.labels() == ["post-without-pre"]


def test_there_are_enough() -> None:
    assert {mistake.__module__ for mistake, _, _ in MISTAKES.values()} == {module.__name__ for module in MODULES}
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("name", ["asyncio", "threads"])
def test_a_mistake_in_a_context_of_any_runtime_is_found(name: str) -> None:
    with by_name(name):
        pass
    with Bench(runtime=name) as bench:

        async def work() -> None:
            buffer = bench.high(SIZE)
            map = bench.tag.create_map()
            await map.load(buffer, FROM)
            map.sync(PREREAD)
            buffer.write(b"early")
            map.sync(POSTREAD)
            map.unload()

        bench.run(work)
    assert bench.labels() == ["cpu-wrote"]
