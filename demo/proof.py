"""From the witness' record and the reopened store: is all that was acknowledged there, and nothing else?

Pure: what the store held before and holds now comes in, a verdict goes out. For every key of the store, not only those
that were written:

  - it holds the newest version that was acknowledged, or a newer one                       else it is lost
  - the bytes are those written under that version: by SHA-256, or, for the write that was
    in flight and so never acknowledged, the right head before the file's own bytes         else it is torn
  - the keys of a batch hold the same version, or all hold what they held before            else it is in halves

And of the record: numbers without holes, versions that rise                                else it is no record

One writer writes one thing at a time, so at most one write can be in the store beyond the record.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import kvsvr
from demo.acks import Ack, digest_of, dissect, quoted
from demo.crash import Life


@dataclass(frozen=True, slots=True)
class Held:
    """What the store holds under a key."""

    version: int
    digest: str
    number: int
    """The write that the value says it comes from; 0: it was loaded."""
    body_digest: str
    """Of the file's own bytes in it, whoever wrote it."""


Contents = Mapping[bytes, Held | None]


def look(db: kvsvr.Engine, key: bytes) -> Held | None:
    found = db.get_versioned(key)
    if found is None:
        return None
    digest = digest_of(found.value)
    number, body = dissect(key, found.value)
    return Held(found.version, digest, number, digest_of(body) if number else digest)


class Fault(Enum):
    LOST = "lost"
    TORN = "torn"
    HALVED = "in halves"
    RECORD = "not in order"


@dataclass(frozen=True, slots=True)
class Finding:
    fault: Fault
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    findings: tuple[Finding, ...]
    key_count: int
    beyond_count: int
    """Keys that hold a write nobody heard of: the one in flight got in before the kill."""

    @property
    def holds(self) -> bool:
        return not self.findings

    def count(self, fault: Fault) -> int:
        return Counter(finding.fault for finding in self.findings)[fault]


def prove(life: Life, before: Mapping[bytes, Held], after: Contents) -> Verdict:
    """What is wrong with what the store holds after the life of a writer, given what it held before."""
    heard: defaultdict[bytes, list[Ack]] = defaultdict(list)
    for ack in life.acks:
        heard[ack.key].append(ack)
    last = life.acks[-1].number
    # The last number heard is among them: of a batch, the kill may have let out some acknowledgements and not others.
    unheard = {last, last + 1}
    findings = list(_record_faults(life, before))
    for key, was in before.items():
        findings += _key_faults(key, was, heard[key], after.get(key), unheard)
    findings += _group_faults(life.groups, before, after)
    newest = max((*(ack.version for ack in life.acks), *(held.version for held in before.values())))
    beyond = sum(held is not None and held.version > newest for held in after.values())
    return Verdict(tuple(findings), len(before), beyond)


def _record_faults(life: Life, before: Mapping[bytes, Held]) -> Iterator[Finding]:
    versions = dict[int, int]()
    for ack in life.acks:
        if versions.setdefault(ack.number, ack.version) != ack.version:
            yield Finding(Fault.RECORD, f"write {ack.number} was acknowledged with two versions")
    if list(versions) != list(range(life.first_number, life.first_number + len(versions))):
        yield Finding(Fault.RECORD, f"the record has holes: its numbers are not {life.first_number} and up, one by one")
    oldest = max(held.version for held in before.values())
    if any(later <= earlier for earlier, later in pairwise((oldest, *versions.values()))):
        yield Finding(Fault.RECORD, "a version was given out that is not newer than those before it")


def _key_faults(key: bytes, was: Held, heard: Sequence[Ack], held: Held | None, unheard: set[int]) -> Iterator[Finding]:
    digests = {was.version: was.digest} | {ack.version: ack.digest for ack in heard}
    newest = max(digests)
    if held is None:
        yield Finding(Fault.LOST, f"{quoted(key)} is absent; version {newest} was acknowledged")
    elif held.version < newest:
        yield Finding(Fault.LOST, f"{quoted(key)} is at version {held.version}; {newest} was acknowledged")
    elif held.version == newest:
        if held.digest != digests[newest]:
            yield Finding(Fault.TORN, f"{quoted(key)} does not hold the bytes of its version, {newest}")
    elif held.number not in unheard or held.body_digest != was.body_digest:
        yield Finding(Fault.TORN, f"{quoted(key)} holds under version {held.version} what was never written")


def _group_faults(
    groups: Iterable[tuple[bytes, ...]], before: Mapping[bytes, Held], after: Contents
) -> Iterator[Finding]:
    for group in groups:
        versions = set[int]()
        for key in group:
            held = after.get(key)
            # Keys that no batch reached hold versions of their own: here they all count as 0, "as before".
            versions.add(held.version if held is not None and held.version != before[key].version else 0)
        if len(versions) > 1:
            keys = ", ".join(map(quoted, group))
            yield Finding(Fault.HALVED, f"versions {sorted(versions)} (0: as before) after batches over {keys}")
