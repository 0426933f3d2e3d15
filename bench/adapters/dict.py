"""A Python dict: what the loops cost when the store costs nothing but a hash table. A limit, not a peer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.adapters.base import Adapter, Reads, Writes, in_order


class DictAdapter(Adapter):
    name = "dict"
    is_peer = False
    is_durable = False
    settings = "memory only"
    durability = ("nothing", "nothing")

    def __init__(self) -> None:
        self._items: dict[bytes, bytes] = {}

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        """Nothing to open: close() keeps the items, so that open() finds what was there, as with a file."""

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        items = self._items
        yield Writes(items.__setitem__, items.__delitem__, write_batch=items.update, put_many=items.update)

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        get = self._items.get
        yield Reads(get=get, get_many=lambda keys: list(map(get, keys)), values=in_order)

    def close(self) -> None:
        pass
