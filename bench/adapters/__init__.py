"""The peers, by the names that `--peers` takes, in the order of the table's columns."""

from collections.abc import Callable, Mapping

from bench.adapters.base import Adapter, NotInstalled, Reads, Writes
from bench.adapters.dict import DictAdapter
from bench.adapters.diskcache import DiskcacheAdapter
from bench.adapters.kvsvr import KvsvrAdapter
from bench.adapters.lmdb import LmdbAdapter, LmdbWritemapAdapter
from bench.adapters.plyvel import PlyvelAdapter
from bench.adapters.rocksdict import RocksdictAdapter
from bench.adapters.sqlite3 import SqliteAdapter

ADAPTERS: Mapping[str, Callable[[], Adapter]] = {
    adapter.name: adapter
    for adapter in (
        KvsvrAdapter,
        LmdbAdapter,
        LmdbWritemapAdapter,
        PlyvelAdapter,
        RocksdictAdapter,
        SqliteAdapter,
        DiskcacheAdapter,
        DictAdapter,
    )
}

__all__ = ["ADAPTERS", "Adapter", "NotInstalled", "Reads", "Writes"]
