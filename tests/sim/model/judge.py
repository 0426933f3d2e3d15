"""Whether a history is linearizable: per key, per pair of keys of a batch, and per table (Wing & Gong, 1993).

An operation whose answer never came may have happened at any time after its call, or never. A delete of what has
expired is an operation of the system: it may happen at any time after the earliest moment at which any owner's clock
could have shown the deadline, or never. So a value that was seen expired cannot come back, whoever's clock it was.

The memo is on the set of operations placed and the state; a history that needs more than `limit` such pairs is left
undecided and counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeAlias

from tests.sim.model.evaluate import row_id
from tests.sim.model.plan import INF
from tests.sim.model.records import READS
from tests.sim.model.world import Entry

# A register is (value, number of the entry that set its deadline); a pair None or two numbers; a table (rows, next id).
State: TypeAlias = Hashable
UNDECIDED_LIMIT = 60_000
PAIR = ("transfer", "get2")
ROWS = ("rput", "rapp", "rdel", "rows")


def initial(entries: Sequence[Entry]) -> State:
    kind = entries[0].op.kind if entries else "get"
    if kind in PAIR:
        return None
    return ((), 1) if kind in ROWS else (None, None)


def step(state: State, entry: Entry) -> tuple[State] | None:
    """The state after an operation, in a tuple of one, as None is a state; or None when its result does not fit."""
    kind = entry.op.kind
    if kind in PAIR:
        return _step_pair(state, entry)
    if kind in ROWS:
        return _step_table(state, entry)
    return _step_register(state, entry)


def _step_register(state: State, entry: Entry) -> tuple[State] | None:
    assert isinstance(state, tuple)
    value, timer = state
    op, result, args = entry.op, entry.result, entry.op.args
    mine = entry.number if op.ttl is not None else None
    match op.kind:
        case "get":
            return (state,) if result is not None and result[1] == value else None
        case "expiry":
            return ((None, None),) if timer == args[0] else None
        case "put":
            return ((args[0], mine),)
        case "del":
            return ((None, None),)
        case "cas":
            done = value == args[0]
            fits = result is None or (result[0] == "OK" if done else result == ("FAIL", value))
            return None if not fits else ((args[1], None),) if done else (state,)
        case "expire" | "persist":
            done = value is not None and (op.kind == "expire" or timer is not None)
            fits = result is None or (result[0] == "OK") == done
            return None if not fits else ((value, mine),) if done else (state,)
    new = _added(value, args[0])
    return ((new, timer),) if result is None or result[1] == new else None


def _added(old: object, arg: object) -> int | str:
    """What incr or append makes of a value; an absent one counts as 0 or nothing."""
    if isinstance(arg, int):
        assert old is None or isinstance(old, int)
        return (old or 0) + arg
    assert isinstance(arg, str)
    assert old is None or isinstance(old, str)
    return (old or "") + arg


def _step_pair(state: State, entry: Entry) -> tuple[State] | None:
    op, result = entry.op, entry.result
    if op.kind == "get2":
        return (state,) if result is not None and result[1] == (state or (None, None)) else None
    a, b = state if isinstance(state, tuple) else (0, 0)
    amount = op.args[0]
    new = (a - amount, b + amount)
    return (new,) if result is None or result[1] == new else None


def _step_table(state: State, entry: Entry) -> tuple[State] | None:
    assert isinstance(state, tuple)
    content, next_row = state
    rows: dict[str, str] = dict(content)
    op, result = entry.op, entry.result
    if op.kind == "rows":
        return (state,) if result is not None and result[1] == (content, len(rows)) else None
    arg = op.args[0]
    if op.kind == "rput":
        assert isinstance(arg, tuple)
        rows.update(arg)
    elif op.kind == "rapp":
        assert isinstance(arg, str)
        if result is not None and result[1] != row_id(next_row):
            return None
        rows[row_id(next_row)] = arg
        next_row += 1
    else:
        assert isinstance(arg, str)
        if result is not None and (result[0] == "OK") != (arg in rows):
            return None
        rows.pop(arg, None)
    return ((tuple(sorted(rows.items())), next_row),)


def linearizable(entries: Sequence[Entry], limit: int = UNDECIDED_LIMIT) -> bool | None:
    """None: not decided within the limit."""
    ops = [e for e in entries if not (e.op.kind in READS and e.result is None)]
    ops.sort(key=lambda e: e.call)
    returns = [INF if e.ret is None or e.result is None else e.ret for e in ops]
    need = sum((ret < INF) << i for i, ret in enumerate(returns))
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, initial(ops))]
    while stack:
        done, state = stack.pop()
        if done & need == need:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > limit:
            return None
        bound = min((returns[i] for i in range(len(ops)) if not done >> i & 1), default=0.0)
        for i in range(len(ops) - 1, -1, -1):
            if not done >> i & 1 and ops[i].call <= bound:
                after = step(state, ops[i])
                if after is not None:
                    stack.append((done | 1 << i, after[0]))
    return False
