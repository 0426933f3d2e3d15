"""Whom a replica knows besides the peers of its settings, kept in its directory: what it learned outlives it.

    DIR/nodes.json    {"members": [1, 2, 3], "addresses": {"4": "127.0.0.1:7204"}, "gone": [2]}

`members` are those that the set began with, as they were at the first start: other settings are refused, because
records of the log are counted among them. `addresses` are of replicas that came later and said so themselves, or of
whom another one told: who proves to know the secret of the set may come. `gone` will never be back; their ids are not
used again. A node that is gone stays gone, whoever says otherwise; what settings say of an address counts more than
what was told.

The file is replaced as a whole, and synced. Without it a replica knows its settings, and learns the rest again from
whoever it meets. Any thread.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kvsvr.errors import CorruptionError, UsageError
from kvsvr.node.config import NODE_MAX, Address, ServerConfig, address, text_of

NAME: Final = "nodes.json"
COUNT_MAX: Final = 1024
"""Of those that are remembered; a set that has outlived so many machines is asked to be made anew."""


class Nodes:
    """Of one replica."""

    def __init__(self, config: ServerConfig) -> None:
        self._file = config.directory / NAME
        self._self = config.node
        self._members = list(config.members)
        self._said = dict(config.peers)
        self._lock = threading.Lock()
        found = _read(self._file)
        if found.get("members", self._members) != self._members:
            raise UsageError(
                f"members are {self._members}, and {found['members']} in {self._file}: they are those that the set "
                "began with, whoever came or went since: say these as members"
            )
        self._learned = {int(node): address(where) for node, where in found.get("addresses", {}).items()}
        self._gone = set(found.get("gone", []))

    @property
    def gone(self) -> Sequence[int]:
        with self._lock:
            return sorted(self._gone)

    def is_gone(self, node: int) -> bool:
        with self._lock:
            return node in self._gone

    def addresses(self) -> Mapping[int, Address]:
        """Of all that are not gone."""
        with self._lock:
            known = {**self._learned, **self._said}
            return {node: where for node, where in known.items() if node not in self._gone}

    def tell(self) -> bytes:
        """For a replica that is met."""
        where = {str(node): text_of(one) for node, one in self.addresses().items()}
        return json.dumps({"addresses": where, "gone": self.gone}).encode()

    def hear(self, told: bytes) -> Sequence[int]:
        """What another one tells: those of whom we hear that they are gone. ValueError: it is not what one tells."""
        found = json.loads(told)
        try:
            others = {_node(node): address(where) for node, where in found["addresses"].items()}
            gone = {_node(node) for node in found["gone"]}
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"it tells of nodes in a way that is not known: {error!r}") from None
        with self._lock:
            fresh = gone - self._gone - {self._self}
            news = {
                node: where
                for node, where in others.items()
                if node not in self._said and node != self._self and self._learned.get(node) != where
            }
            if len(self._learned) + len(news) + len(self._gone) + len(fresh) > COUNT_MAX:
                return []
            self._gone |= fresh
            self._learned |= news
        if fresh or news:
            self.keep()
        return sorted(fresh)

    def met(self, node: int, where: Address) -> None:
        """It says itself where it can be reached."""
        with self._lock:
            known = node in self._said or self._learned.get(node) == where
            self._learned[node] = where
        if not known:
            self.keep()

    def part(self, node: int) -> None:
        with self._lock:
            known = node in self._gone
            self._gone.add(node)
            self._learned.pop(node, None)
        if not known:
            self.keep()

    def keep(self) -> None:
        """In the file, durably. The directory has to be there."""
        with self._lock:
            learned = {str(node): text_of(where) for node, where in self._learned.items() if node not in self._gone}
            said = {"members": self._members, "addresses": learned, "gone": sorted(self._gone)}
            draft = self._file.with_name(NAME + ".new")
            with open(draft, "w", encoding="utf-8") as file:
                json.dump(said, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._file)
            _sync(self._file.parent)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CorruptionError(str(file), f"{error}; without the file it is learned again from the others") from None
    if not isinstance(found, dict):
        raise CorruptionError(str(file), "it tells of no nodes; without the file it is learned again from the others")
    return found


def _node(number: Any) -> int:
    if not 0 < int(number) <= NODE_MAX:
        raise ValueError(f"{number} is no id of a node")
    return int(number)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
