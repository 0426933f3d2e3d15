"""What can go wrong, as a tree: a class exists where a caller would act differently, and no other.

    KvError
      UsageError        the call cannot be right as it stands: change the call       (also a ValueError)
      WrongType         the key holds another kind of thing: look at the data
      VersionConflict   someone else wrote first: read again and decide
      LockedError       another process writes to this store: wait for it, or open read-only
      ClosedError       this handle is done: open again
      SnapshotExpired   what the snapshot saw is gone: take a new one
      DiskError         the disk refused: look at .errno; .full means make room, then write on
      CorruptionError   bytes are not what was written: restore, or salvage
      Unavailable       no quorum now: nothing happened, try again
      Unknown           no answer came: it may have happened or not

A key or a value that is not bytes, and what is no list of them where one is wanted, is a plain TypeError. Numbers and
settings are checked as a whole, type and range: a wrong one is UsageError either way. No memory is MemoryError.
WrongType is no TypeError on purpose: it speaks of stored data, and who catches a programming mistake must not
swallow it.
"""

import errno as _errno
from typing import Any


class KvError(Exception):
    """The root of everything kvsvr raises on its own account."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The classes below take fields and make the message themselves. Exceptions are copied by calling the class
        # with `args`, the message: a process pool whose worker raised one would hang on it.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[KvError], args: tuple[Any, ...], fields: dict[str, Any]) -> KvError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class UsageError(KvError, ValueError):
    """The call, not the store, is wrong."""


class WrongType(KvError):
    """The key holds something this call is not for: text where a counter is wanted, a table where a value is.

    `key` is a row of `table`, if there is one; both None where the call knew of many keys only.
    """

    def __init__(self, message: str, *, key: bytes | None = None, table: bytes | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.table = table


class VersionConflict(KvError):
    """The key is not at the version the caller named. Nothing was written. `current` is 0 if it is absent.

    With a `table`, `key` is a row of it.
    """

    def __init__(self, key: bytes, current: int, *, table: bytes | None = None) -> None:
        now = f"at version {current}" if current else "absent"
        what = shown_key(key) if table is None else f"row {shown_key(key)} of {shown_key(table)}"
        super().__init__(f"{what} is {now}, not what the call expected: read it again, then decide")
        self.key = key
        self.table = table
        self.current = current


class LockedError(KvError):
    """Another process, or another handle in this one, has the store open for writing. `holder` is 0 if unknown."""

    def __init__(self, path: str, holder: int, *, here: bool = False) -> None:
        who = "this process" if here else "another process"
        pid = f" ({holder})" if holder else ""
        super().__init__(
            f"{path} is open for writing in {who}{pid}: "
            + ("use that handle, or close it first" if here else "end it first, or open with readonly=True")
        )
        self.path = path
        self.holder = holder


class ClosedError(KvError):
    """The store was closed, or was opened before this process was forked."""


class SnapshotExpired(KvError):
    """The snapshot held on to more than `snapshot_size_max` bytes of what was replaced since it was taken."""


class DiskError(KvError):
    """The operating system refused a file operation. `errno` is its number, or 0; `full` means no space was left."""

    def __init__(self, message: str, *, path: str, errno: int = 0) -> None:
        super().__init__(message)
        self.path = path
        self.errno = errno

    @property
    def full(self) -> bool:
        """No space, or no quota, left: reads go on, and writes too once there is room."""
        return self.errno in (_errno.ENOSPC, _errno.EDQUOT)


class CorruptionError(KvError):
    """Bytes that were durable are not what was written. Nothing was changed on the disk.

    `position` is (segment, offset) of the first bad record. None: it is the index that is damaged, which can be made
    anew, and `what` says when.
    """

    def __init__(self, path: str, what: str, position: tuple[int, int] | None = None) -> None:
        cure = ". Nothing was changed; restore it from a backup" if position else ""
        super().__init__(f"{path} is damaged: {what}{cure}")
        self.path = path
        self.what = what
        self.position = position


class Unavailable(KvError):
    """Too few replicas answer. Nothing was done."""


class Unknown(KvError):
    """The answer was lost: the write may have happened or not. Read before writing again."""


def shown(value: object) -> str:
    """An argument as an error shows it. Python refuses to print very long integers at all."""
    try:
        text = repr(value)
    except ValueError:
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 64 else f"{text[:64]}..."


def shown_key(key: bytes) -> str:
    """A key as an error shows it: keys may have 65,535 bytes, messages should not."""
    return repr(key) if len(key) <= 64 else f"{key[:64]!r}... ({len(key)} bytes)"
