"""What a service will not do for this caller: the call is well made, and the answer is no."""

from __future__ import annotations

from typing import Literal, TypeAlias

from kvsvr.errors import KvError

Reason: TypeAlias = Literal[
    "sync_key", "devices", "unknown", "exists", "not_a_member", "not_the_owner", "too_late", "full"
]


class Refused(KvError):
    """`reason` is a word that programs may go by; the text is for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
