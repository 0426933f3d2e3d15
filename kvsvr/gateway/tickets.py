"""Tickets: who somebody is, signed, until when. Whoever has the secret can issue and check them; no store is asked.

    base64url( mac, 16 bytes | msgpack [user, until] )         until: whole seconds since 1970

A ticket cannot be taken back before it ends: take a new secret for that, and all of them are void.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from kvsvr.errors import UsageError
from kvsvr.gateway.failures import Refusal
from kvsvr.services.names import name_of

MAC_SIZE: Final = 16
SECRET_SIZE_MIN: Final = 16
TICKET_SIZE_MAX: Final = 1000
SECRET_KEY: Final = b"{kvsvr/gateway}:secret"
"""Where a store keeps the one that its gateways share."""


class Ticket(msgspec.Struct, array_like=True, frozen=True):
    user: str
    until: int


_ticket: Final = msgspec.msgpack.Decoder(Ticket)
_encode: Final = msgspec.msgpack.Encoder().encode


class Tickets:
    """Signed with the first secret; those signed with another of them are still taken."""

    def __init__(self, secrets: Sequence[bytes], clock: Callable[[], float] = time.time) -> None:
        if not secrets or any(len(one) < SECRET_SIZE_MIN for one in secrets):
            raise UsageError(f"a secret has at least {SECRET_SIZE_MIN} bytes")
        self._secrets = list(secrets)
        self._clock = clock

    def issue(self, user: str, seconds: float) -> str:
        payload = _encode(Ticket(name_of(user, "a user"), int(self._clock() + seconds)))
        return base64.urlsafe_b64encode(_mac(self._secrets[0], payload) + payload).decode().rstrip("=")

    def check(self, text: str) -> Ticket:
        """What it says. A forged one, and one that has ended, is refused."""
        try:
            if len(text) > TICKET_SIZE_MAX:
                raise ValueError
            content = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise Refusal("ticket", "this is no ticket") from None
        mac, payload = content[:MAC_SIZE], content[MAC_SIZE:]
        if not any(hmac.compare_digest(mac, _mac(secret, payload)) for secret in self._secrets):
            raise Refusal("ticket", "this ticket was not issued here")
        ticket = _ticket.decode(payload)
        if self.left(ticket) <= 0:
            raise Refusal("expired", f"the ticket of {ticket.user!r} has ended")
        return ticket

    def left(self, ticket: Ticket) -> float:
        """Seconds."""
        return ticket.until - self._clock()


def _mac(secret: bytes, payload: bytes) -> bytes:
    # `person`: a secret that also signs something else signs no tickets by it.
    return hashlib.blake2b(payload, key=secret[:64], digest_size=MAC_SIZE, person=b"kvsvr ticket").digest()
