# native/python/quick.c, pack.c and listing.c, which have the docstrings.
from collections.abc import Callable, Iterator
from typing import Any

class Collecting:
    _operations: Any
    _plain: bool

class Door:
    def __init__(self, address: int, memory_size: int) -> None: ...
    def shut(self) -> None: ...

class Listing:
    def __init__(
        self,
        pool: object,
        what: int,
        values: bool,
        reverse: bool,
        start: bytes | None,
        stop: bytes | None,
        limit: int | None,
        table: bytes | None,
    ) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...

class Pairs:
    address: int
    def __init__(self, iterator: Iterator[Any], convert: Callable[[object, str], bytes]) -> None: ...
    def __len__(self) -> int: ...

class Quick:
    def __init__(self, method: object) -> None: ...

class Quickened:
    _door: Door
    _handle: Any
    _key: bytes
    def __init__(self, pool: Any, key: object) -> None: ...

def pack(contents: dict[Any, tuple[bytes | None, int]], table: bytes | None) -> bytes | None: ...
