"""The disk: its bytes against a bytearray, its image file, and the times of its mechanics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busdma.errors import ConfigurationError, DriverError
from busdma.sim.disk import BARRACUDA_2LP, Disk, Geometry

REVOLUTION = BARRACUDA_2LP.revolution
MS = 1_000_000


@settings(max_examples=40, deadline=None)
@given(
    operations=st.lists(
        st.tuples(st.booleans(), st.integers(0, 63), st.integers(0, 8), st.integers(0, 255)), max_size=30
    ),
    block_size=st.sampled_from([512, 1024]),
)
def test_a_disk_holds_what_a_bytearray_holds(operations: list[tuple[bool, int, int, int]], block_size: int) -> None:
    model = bytearray(64 * block_size)
    with Disk(None, blocks=64, block_size=block_size) as disk:
        for write, lba, count, value in operations:
            count = min(count, 64 - lba)
            where = slice(lba * block_size, (lba + count) * block_size)
            if write:
                data = bytes((value + index) & 0xFF for index in range(count * block_size))
                disk.write(lba, data)
                model[where] = data
            assert disk.read(lba, count) == model[where]
        assert disk.read(0, 64) == model


def test_an_image_is_created_sparse_and_is_the_file_that_others_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with Disk(path, blocks=1 << 21) as disk:
        disk.write((1 << 21) - 1, b"\xa5" * 512)
    stat = path.stat()
    assert stat.st_size == 1 << 30
    assert stat.st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        file.seek(-512, os.SEEK_END)
        assert file.read() == b"\xa5" * 512
    with Disk(path) as again:
        assert again.blocks == 1 << 21
        assert again.read((1 << 21) - 1, 1) == b"\xa5" * 512


def test_a_disk_without_a_path_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Disk(None, blocks=8) as disk:
        disk.write(3, bytes(512))
        assert list(tmp_path.iterdir()) == []


def test_a_read_only_disk_is_read_and_never_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\x11" * 2048)
    path.chmod(0o444)
    with Disk(path, read_only=True) as disk:
        assert disk.read(0, 4) == b"\x11" * 2048
        with pytest.raises(DriverError, match="read-only"):
            disk.write(0, bytes(512))
    assert path.read_bytes() == b"\x11" * 2048


def test_what_cannot_be_an_image_is_named(tmp_path: Path) -> None:
    odd = tmp_path / "odd.img"
    odd.write_bytes(b"x" * 700)
    good = tmp_path / "good.img"
    good.write_bytes(bytes(1024))
    empty = tmp_path / "empty.img"
    empty.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="directory does not exist"):
        Disk(tmp_path / "missing" / "disk.img", blocks=8)
    with pytest.raises(ConfigurationError, match="no such file"):
        Disk(tmp_path / "missing.img", read_only=True)
    with pytest.raises(ConfigurationError, match="directory"):
        Disk(tmp_path, blocks=8)
    with pytest.raises(ConfigurationError, match="700 bytes, no multiple of its block size 512"):
        Disk(odd)
    with pytest.raises(ConfigurationError, match="has 2 blocks, not 3"):
        Disk(good, blocks=3)
    with pytest.raises(ConfigurationError, match="say with blocks="):
        Disk(empty)
    with pytest.raises(ConfigurationError, match="cannot be given its size"):
        Disk(empty, blocks=8, read_only=True)
    with pytest.raises(ConfigurationError, match="power of two"):
        Disk(good, block_size=500)
    with pytest.raises(ConfigurationError, match="from 1 to"):
        Disk(None, blocks=0)
    with pytest.raises(ConfigurationError, match="at least one head"):
        Geometry(heads=0)
    with pytest.raises(ConfigurationError, match="negative"):
        Geometry(skew=-1)


def test_a_refused_image_leaves_no_descriptor_open(tmp_path: Path) -> None:
    odd = tmp_path / "odd.img"
    odd.write_bytes(b"x" * 700)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(ConfigurationError):
            Disk(odd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_misuse_is_an_error() -> None:
    disk = Disk(None, blocks=8)
    with pytest.raises(DriverError, match="blocks 7 to 8"):
        disk.read(7, 2)
    with pytest.raises(DriverError, match="whole blocks"):
        disk.write(0, b"short")
    disk.close()
    disk.close()
    with pytest.raises(DriverError, match="closed"):
        disk.read(0, 1)


def test_an_image_that_shrank_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with Disk(path, blocks=8) as disk:
        os.truncate(path, 1024)
        assert disk.read(1, 1) == bytes(512)
        with pytest.raises(OSError, match="shorter"):
            disk.read(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 999_000), st.integers(1, 128), st.booleans(), st.integers(0, 30 * MS)), max_size=12
    ),
    seed=st.integers(0, 9),
)
def test_service_times_are_possible_and_repeatable(requests: list[tuple[int, int, bool, int]], seed: int) -> None:
    g = BARRACUDA_2LP
    with Disk(None, blocks=1_000_000, seed=seed) as disk, Disk(None, blocks=1_000_000, seed=seed) as twin:
        longest_seek = g.settle + g.seek * disk.cylinders**0.5
        now = 0
        for lba, count, writing, pause in requests:
            now += pause
            took = disk.service_ns(lba, count, now, writing=writing)
            assert took == twin.service_ns(lba, count, now, writing=writing)
            media = (count + (count // g.sectors + 1) * g.skew) * REVOLUTION / g.sectors
            assert g.overhead <= took <= g.overhead + longest_seek + REVOLUTION + media
            if writing:
                assert took >= g.overhead + count * REVOLUTION // g.sectors
            now += took


def test_the_platter_turns_with_the_clock() -> None:
    """Writing the same sector again costs the rest of a turn; where it starts depends on the seed alone."""
    with Disk(None, blocks=1000) as disk:
        now = disk.service_ns(0, 1, 0, writing=True)
        again = disk.service_ns(0, 1, now, writing=True)
        assert abs(again - REVOLUTION) < 10
        late = disk.service_ns(0, 1, now + again + 3 * MS, writing=True)
        assert abs(late - (REVOLUTION - 3 * MS)) < 10
    with Disk(None, blocks=1000, seed=1) as other:
        assert other.service_ns(0, 1, 0, writing=True) != now


def test_a_seek_grows_with_the_root_of_the_distance() -> None:
    flat = Geometry(rpm=60_000_000, overhead=0, skew=0)  # hardly any rotation: what is left is the seek
    per_cylinder = flat.heads * flat.sectors

    def seek(cylinders: int) -> int:
        with Disk(None, blocks=4000 * per_cylinder, geometry=flat) as disk:
            return disk.service_ns(cylinders * per_cylinder, 1, 0, writing=True)

    times = [seek(distance) for distance in (1, 4, 100, 1170, 3600)]
    assert times == sorted(times)
    assert abs(times[0] - 817_000) < 3_000
    assert abs(times[1] - (600_000 + 2 * 217_000)) < 3_000
    assert 7.5 * MS < times[3] < 8.5 * MS


def test_the_heads_stay_where_the_last_request_left_them() -> None:
    flat = Geometry(rpm=60_000_000, overhead=0, skew=0)
    far = 1000 * flat.heads * flat.sectors
    with Disk(None, blocks=2 * far, geometry=flat) as disk:
        there = disk.service_ns(far, 1, 0, writing=True)
        assert there > 7 * MS
        assert disk.service_ns(far + 5, 1, there, writing=True) < 2 * flat.revolution
        assert disk.service_ns(0, 1, 2 * there, writing=True) > 7 * MS


def test_the_next_track_comes_round_just_after_the_heads_have_changed() -> None:
    g = Geometry(overhead=0)
    sector = g.revolution // g.sectors
    with Disk(None, blocks=10_000, geometry=g) as disk:
        now = disk.service_ns(0, g.sectors, 0, writing=True)
        assert abs(disk.service_ns(g.sectors, 1, now, writing=True) - (g.skew + 1) * sector) < 10 * g.sectors


def test_a_drive_reads_on_but_does_not_write_on() -> None:
    """Reads one after another stream at the speed of the platter; writes lose most of a turn each time."""

    def elapsed(writing: bool) -> int:
        with Disk(None, blocks=10_000) as disk:
            now = disk.service_ns(0, 64, 0, writing=writing)
            first = now
            for index in range(1, 20):
                now += disk.service_ns(64 * index, 64, now + 1 * MS, writing=writing) + 1 * MS
            return now - first

    streaming = 19 * 64 * REVOLUTION // BARRACUDA_2LP.sectors
    assert elapsed(writing=False) < 1.5 * streaming
    assert elapsed(writing=True) > 1.8 * streaming


def test_what_was_read_on_is_in_the_buffer_later_too() -> None:
    with Disk(None, blocks=10_000) as disk:
        now = disk.service_ns(0, 8, 0)
        assert disk.service_ns(8, 8, now + 100 * MS) == BARRACUDA_2LP.overhead
        disk.service_ns(5000, 8, now + 200 * MS, writing=True)
        assert disk.service_ns(5008, 8, now + 300 * MS) > BARRACUDA_2LP.overhead  # after a write it does not read on
        assert disk.service_ns(16, 8, now + 400 * MS) > BARRACUDA_2LP.overhead  # and the buffer has other blocks now


def test_a_drive_reads_on_no_further_than_its_buffer() -> None:
    with Disk(None, blocks=10_000) as disk:
        start = now = disk.service_ns(0, 8, 0) + 10_000 * MS
        for index in range(20):
            now += disk.service_ns(8 + 128 * index, 128, now)
        at_least = (20 * 128 - BARRACUDA_2LP.buffer) * REVOLUTION // BARRACUDA_2LP.sectors
        assert now - start > at_least
