"""What an operation does to the newest state an owner knows: a pure function, so that a retry is one record or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from tests.sim.model.data import Unavailable
from tests.sim.model.records import Op, Plain, Stamp, State, Value, Write


class Outcome(NamedTuple):
    writes: tuple[Write, ...]
    result: object
    fallback: int = 0
    stamp: Stamp | None = None


class ConditionFailed(Exception):
    """The condition of an operation does not hold; what the client gets is `result`."""

    def __init__(self, result: object) -> None:
        super().__init__(result)
        self.result = result


BytesOf: TypeAlias = Callable[[Value], Plain]


def evaluate(state: State, op: Op, clock: float, bytes_of: BytesOf) -> Outcome:
    """Raises Unavailable or ConditionFailed. Whatever has expired was deleted before."""
    if op.kind in ("rput", "rdel", "rapp", "trim"):
        return _evaluate_rows(state, op)
    key = op.keys[0]
    if op.kind == "put":
        value = op.args[0]
        assert not isinstance(value, tuple)
        return Outcome((Write(key, value, deadline(op, clock)),), "OK")
    if op.kind == "del":
        return Outcome((Write(key, None),), "OK")
    if op.kind == "forget":
        return _evaluate_forget(state, key, bytes_of)
    if op.kind in ("expire", "persist"):
        return _evaluate_deadline(state, op, clock)
    return _evaluate_old(state, op, bytes_of)


def deadline(op: Op, clock: float) -> float | None:
    return None if op.ttl is None else clock + op.ttl


def _evaluate_old(state: State, op: Op, bytes_of: BytesOf) -> Outcome:
    """What needs the value before: incr and append keep the deadline, cas clears it, as put does."""
    key, arg = op.keys[0], op.args[0]
    newest = state.newest(key)
    old = bytes_of(newest.value)
    if op.kind == "cas":
        new = op.args[1]
        assert not isinstance(new, tuple)
        if old != arg:
            raise ConditionFailed(old)
        return Outcome((Write(key, new),), "OK")
    if op.kind == "append":
        assert isinstance(arg, str)
        text = _text(old) + arg
        return Outcome((Write(key, text, newest.deadline),), text)
    assert isinstance(arg, int)
    if op.kind == "incr":
        number = _number(old) + arg
        return Outcome((Write(key, number, newest.deadline),), number)
    assert op.kind == "transfer"
    a, b = _number(old) - arg, _number(bytes_of(state.newest(op.keys[1]).value)) + arg
    return Outcome((Write(key, a), Write(op.keys[1], b)), (a, b))


def _text(value: Plain) -> str:
    assert value is None or isinstance(value, str)
    return value or ""


def _number(value: Plain) -> int:
    assert value is None or isinstance(value, int)
    return value or 0


def _evaluate_deadline(state: State, op: Op, clock: float) -> Outcome:
    """A record with the value as it is and another deadline; it needs no bytes."""
    newest = state.newest(op.keys[0])
    if newest.value is None or (op.kind == "persist" and newest.deadline is None):
        raise ConditionFailed(False)
    return Outcome((Write(op.keys[0], newest.value, deadline(op, clock)),), True)


def _evaluate_forget(state: State, key: str, bytes_of: BytesOf) -> Outcome:
    """The newest version is given up for the one kept behind it (an operator's decision)."""
    kept = state.keys.get(key, ())
    try:
        bytes_of(state.newest(key).value)
    except Unavailable:
        if len(kept) > 1:
            old = kept[1]
            result = ("forgot", kept[0].version, old.version)
            return Outcome((Write(key, old.value, old.deadline),), result, old.version)
        raise ConditionFailed("nothing kept") from None
    raise ConditionFailed("not missing")


def _evaluate_rows(state: State, op: Op) -> Outcome:
    """Rows of one table. The stamp is what the table is after all of them, so any of them says it."""
    key = op.keys[0]
    table = state.table(key)
    live = {name for name, row in table.rows.items() if row.value is not None}
    if op.kind == "trim":
        floor = op.args[0]
        assert isinstance(floor, int)
        floor = max(table.floor, min(floor, table.version))
        return Outcome((), "OK", 0, Stamp(key, table.row_count, table.next_row, floor))
    if op.kind == "rput":
        writes = tuple(Write(key, value, None, row) for row, value in _pairs(op))
        live |= {row for row, _ in _pairs(op)}
        return Outcome(writes, "OK", 0, Stamp(key, len(live), table.next_row, table.floor))
    arg = op.args[0]
    assert isinstance(arg, str)
    if op.kind == "rapp":
        row = row_id(table.next_row)
        stamp = Stamp(key, len(live) + 1, table.next_row + 1, table.floor)
        return Outcome((Write(key, arg, None, row),), row, 0, stamp)
    assert op.kind == "rdel"
    if arg not in live:
        raise ConditionFailed(False)
    return Outcome((Write(key, None, None, arg),), True, 0, Stamp(key, len(live) - 1, table.next_row, table.floor))


def _pairs(op: Op) -> list[tuple[str, str]]:
    return [pair for arg in op.args if isinstance(arg, tuple) for pair in arg]


def row_id(number: int) -> str:
    return f"{number:04d}"
