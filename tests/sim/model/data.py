"""Bytes that records name by digest (PROTOCOL section 7): kept, shown, fetched, and dropped when nobody needs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from tests.sim.model.core import Identity, Settings
from tests.sim.model.messages import DataEntry, Fetch, Fetched, Held
from tests.sim.model.records import Meta, Plain, Value
from tests.sim.model.repair import Repair
from tests.sim.model.shard import Shard, majority


def digest_of(data: str) -> str:
    return hashlib.sha256(data.encode()).hexdigest()[:12]


class Unavailable(Exception):
    """The bytes of a value are not here."""

    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        self.digest = digest


class Data(Repair):
    def __init__(self, identity: Identity, settings: Settings, peers: Iterable[int]) -> None:
        super().__init__(identity, settings, peers)
        self._bytes: dict[str, str] = {}
        self._bytes_at: dict[str, int] = {}  # Digest -> log position of its DATA record.
        self._held: dict[str, set[int]] = {}  # Digest -> nodes known to hold the bytes durably.

    def _bytes_of(self, value: Value, *, readable: bool = False) -> Plain:
        """The value itself. The origin shows its bytes to readers and peers only when they are durable."""
        if not isinstance(value, Meta):
            return value
        if value.digest not in self._bytes or (readable and not self._shown(value.digest)):
            raise Unavailable(value.digest)
        return self._bytes[value.digest]

    def _shown(self, digest: str) -> bool:
        return digest in self._bytes and (self._bytes_at[digest] <= self.durable or self.lacks("meta_early"))

    def _store(self, value: Value) -> Value:
        """Large values: the bytes go into the log first, the record only names them."""
        if not isinstance(value, str) or len(value) <= self.settings.inline_max:
            return value
        digest = digest_of(value)
        self._keep_bytes(digest, value)
        return Meta(len(value), digest, self.node)

    def _keep_bytes(self, digest: str, data: str) -> None:
        if digest not in self._bytes:
            self._log(DataEntry(digest, data))
            self._bytes[digest], self._bytes_at[digest] = data, self.log_end

    def _metas(self) -> Iterator[tuple[str, int]]:
        """Digests of all versions kept in the states and named by the tails, and how many versions their key keeps."""
        for sh in self.shards:
            for kept in sh.state.keys.values():
                for x in kept:
                    if isinstance(x.value, Meta):
                        yield x.value.digest, len(kept)
            for record in sh.after(sh.applied):
                for write in record.writes:
                    if isinstance(write.value, Meta):
                        yield write.value.digest, 1

    def _bulk_lane(self) -> None:
        """In the background: pull the bytes that are missing, tell what is held."""
        missing: set[str] = set()
        held: set[str] = set()
        for digest, kept_count in self._metas():
            if digest not in self._bytes:
                missing.add(digest)
            elif kept_count > 1 and self._bytes_at[digest] <= self.durable:
                held.add(digest)
        if missing:
            self._broadcast(Fetch(tuple(sorted(missing))))
        if held:
            self._broadcast(Held(tuple(sorted(held))))
            self._on_held(self.node, Held(tuple(sorted(held))))

    def _fetch(self, digest: str) -> None:
        if digest not in self._bytes:
            self._broadcast(Fetch((digest,)))

    def _on_fetch(self, src: int, m: Fetch) -> None:
        found = tuple((d, self._bytes[d]) for d in m.digests if self._shown(d))
        if found:
            self.stats["fetched"] += 1
            self._send(src, Fetched(found))

    def _on_fetched(self, m: Fetched) -> None:
        wanted = {digest for digest, _ in self._metas()}
        for digest, data in m.data:
            if digest in wanted and digest_of(data) == digest:
                self._keep_bytes(digest, data)

    def _on_held(self, src: int, m: Held) -> None:
        for digest in m.digests:
            self._held.setdefault(digest, set()).add(src)
        for sh in self.shards:
            for key in sh.state.keys:
                self._drop_old_versions(sh, key)

    def _drop_old_versions(self, sh: Shard, key: str) -> None:
        """Keep every version down to the first that is inline, a delete, or held by a majority of the members."""
        kept = sh.state.keys[key]
        if len(kept) < 2:
            return
        members = sh.members()
        for i, x in enumerate(kept):
            enough = not isinstance(x.value, Meta) or len(self._held.get(x.value.digest, set()) & members) >= majority(
                members
            )
            if enough or self.lacks("drop_previous"):
                sh.state.keys[key] = kept[: i + 1]
                return

    def _collect_bytes(self) -> None:
        """Bytes that no kept version names are dropped."""
        named = {digest for digest, _ in self._metas()}
        for sh in self.shards:
            if sh.own is not None:
                newest = (sh.own.overlay.newest(key).value for key in sh.own.overlay.keys)
                named |= {value.digest for value in newest if isinstance(value, Meta)}
        for digest in [d for d in self._bytes if d not in named]:
            self.stats["bytes_dropped"] += 1
            del self._bytes[digest], self._bytes_at[digest]
