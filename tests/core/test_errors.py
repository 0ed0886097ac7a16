"""Errors say in their attributes what their messages say in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from busdma.addresses import AddressSet
from busdma.errors import (
    BufferGone,
    BufferTooLong,
    BusdmaError,
    ConstraintError,
    DeadlineExpired,
    DeviceFault,
    DriverError,
    MappingRefused,
    MapStateError,
    ResourceShortage,
    SyncError,
    TooManySegments,
)
from busdma.sync import POSTREAD, PREREAD, Direction, SyncOp
from core.small_machine import PAGE, Pages, SmallMachine


def facts(error: BusdmaError) -> dict[str, object]:
    every = {name: getattr(error, name) for name in ("tag", "map", "address", "length", "owner")}
    return {name: value for name, value in every.items() if value is not None}


def test_an_error_knows_nothing_until_it_is_told_and_then_keeps_what_it_was_told_first() -> None:
    error = DriverError("words")
    assert facts(error) == {}
    assert error.about(tag="pc/isa", length=0) is error
    assert facts(error.about(tag="pc", map="disk0", owner="kernel")) == {
        "tag": "pc/isa",
        "length": 0,
        "map": "disk0",
        "owner": "kernel",
    }
    assert facts(DeviceFault("a parity error", 0x1000).about(address=0x2000)) == {"address": 0x1000}


def test_a_refused_load_names_tag_map_and_buffer(small: SmallMachine) -> None:
    tag = small.isa.derive("d", maxsize=32 * PAGE)
    map = tag.create_map(name="m")
    of_map = {"tag": "pc/isa/d", "map": "m"}
    process = small.space("cp")

    def fails(kind: type[BusdmaError], load: Callable[[], object]) -> dict[str, object]:
        with pytest.raises(kind) as caught:
            load()
        assert str(map.state.name) == "IDLE"
        assert len(map.segments) == 0
        return facts(caught.value)

    long = small.low(33 * PAGE)
    of_long = {"address": long.address, "length": 33 * PAGE, "owner": "kernel"}
    assert fails(BufferTooLong, lambda: map.load_nowait(long)) == of_map | of_long
    wide = process.allocate(21 * PAGE, within=small.above)
    of_wide = {"address": wide.address, "length": 21 * PAGE, "owner": "process 'cp'"}
    assert fails(MappingRefused, lambda: map.load_nowait(wide)) == of_map | of_wide
    process.destroy()
    assert fails(BufferGone, lambda: map.load_nowait(wide)) == of_map | of_wide
    assert fails(DriverError, lambda: map.load_nowait(b"data")) == of_map | {"length": 4, "owner": "host"}
    assert fails(DriverError, lambda: map.load_nowait(7)) == of_map


def test_a_read_only_buffer_is_refused_where_it_could_stay_too(small: SmallMachine) -> None:
    map = small.isa.create_map()
    buffer = Pages([PAGE], 0, 100)
    buffer.readonly = True
    for direction in (Direction.FROM_DEVICE, Direction.BOTH):
        with pytest.raises(DriverError, match="it is read-only"):
            map.load_nowait(buffer, direction)
        assert len(map.segments) == 0
    assert list(map.load_nowait(buffer, Direction.TO_DEVICE)) == [(PAGE, 100)]
    map.unload()


def test_what_is_no_direction_is_refused_before_anything_is_taken(small: SmallMachine) -> None:
    map = small.isa.create_map()
    wrong: Any = PREREAD
    for buffer in (small.low(PAGE), small.high(PAGE)):
        with pytest.raises(DriverError, match=r"give Direction\.TO_DEVICE"):
            map.load_nowait(buffer, wrong)
        assert small.zone.statistics()["active"] == 0
        map.load_nowait(buffer)
        map.unload()


def test_misuse_of_a_map_and_of_sync(small: SmallMachine) -> None:
    map = small.isa.create_map(name="m")
    of_map = {"tag": "pc/isa", "map": "m"}
    with pytest.raises(MapStateError) as idle:
        map.unload()
    assert facts(idle.value) == of_map
    map.load_nowait(small.low(100))
    for op, offset, length in ((PREREAD | POSTREAD, 0, 5), (SyncOp(0), 0, 5), (PREREAD, 98, 5)):
        with pytest.raises(SyncError) as error:
            map.sync(op, offset, length)
        assert facts(error.value) == of_map | {"length": 5}


def test_a_shortage_and_a_deadline(small: SmallMachine) -> None:
    holder, map = small.isa.create_map(), small.isa.create_map(name="m")
    holder.load_nowait(small.high(20 * PAGE))
    buffer = small.high(PAGE)
    known = {"tag": "pc/isa", "map": "m", "address": buffer.address, "length": PAGE, "owner": "kernel"}
    with pytest.raises(ResourceShortage) as shortage:
        map.load_nowait(buffer)
    assert facts(shortage.value) == known
    with pytest.raises(DeadlineExpired) as expired:
        map.load_blocking(buffer, deadline=5)
    assert facts(expired.value) == known


def test_tags_and_memory(small: SmallMachine) -> None:
    with pytest.raises(ConstraintError) as wider:
        small.isa.derive("d", exclude=AddressSet.everything())
    assert facts(wider.value) == {"tag": "pc/isa/d"}
    tag = small.isa.derive("d", nsegments=1, maxsegsz=PAGE)
    with pytest.raises(ConstraintError) as none:
        tag.alloc(0)
    assert facts(none.value) == {"tag": "pc/isa/d", "length": 0}
    with pytest.raises(TooManySegments) as many:
        tag.alloc(2 * PAGE)
    assert facts(many.value) == {"tag": "pc/isa/d", "map": "memory of 8192 bytes", "length": 2 * PAGE}
    memory = tag.alloc(16)
    memory.free()
    with pytest.raises(BufferGone) as gone:
        memory.free()
    assert facts(gone.value) == {"tag": "pc/isa/d", "length": 16}
    assert tag.maps == []
