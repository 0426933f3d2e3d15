"""The catalog's file, damaged at every byte: what was put is read, or nothing is, and the next write mends it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsvr.store.catalog import FILE_NAME, TRAILER_SIZE, Catalog

DESCRIPTION = bytes(range(256))


def written(directory: Path) -> bytes:
    Catalog(str(directory)).put_checkpoint(DESCRIPTION)
    return (directory / FILE_NAME).read_bytes()


def check_refused(directory: Path, content: bytes) -> None:
    (directory / FILE_NAME).write_bytes(content)
    catalog = Catalog(str(directory))
    assert catalog.checkpoint() is None
    assert catalog.note


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    """LMDB never sees a page that is not what was written: it would follow it to any address."""
    good = written(tmp_path)
    assert Catalog(str(tmp_path)).checkpoint() == DESCRIPTION
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        check_refused(tmp_path, bytes(bad))


def test_a_file_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    good = written(tmp_path)
    for size in {*range(0, len(good), 97), *range(len(good) - TRAILER_SIZE - 2, len(good))}:
        check_refused(tmp_path, good[:size])


@settings(deadline=None)  # What a disk takes is not what is tested.
@given(content=st.binary(max_size=200), behind=st.binary(max_size=200), keep=st.integers(0, 1 << 16))
def test_any_bytes_are_refused_and_the_next_write_mends_them(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, behind: bytes, keep: int
) -> None:
    directory = tmp_path_factory.mktemp("catalog")
    good = written(directory)
    bad = content + good[:keep] + behind
    if bad == good:
        return
    check_refused(directory, bad)
    Catalog(str(directory)).put_checkpoint(DESCRIPTION[::-1])
    assert Catalog(str(directory)).checkpoint() == DESCRIPTION[::-1]
