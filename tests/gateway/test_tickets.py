"""A ticket is taken if it was issued by this secret, for this user, and has not ended; otherwise never."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsvr.errors import UsageError
from kvsvr.gateway.failures import Refusal
from kvsvr.gateway.tickets import Tickets

SECRET, OTHER = b"0123456789abcdef", b"fedcba9876543210"


def refused(tickets: Tickets, text: str) -> str:
    with pytest.raises(Refusal) as error:
        tickets.check(text)
    return error.value.code


@given(user=st.text("aZ09 ./~é漢😀", min_size=1, max_size=40))
def test_what_was_issued_is_taken(user: str) -> None:
    tickets = Tickets([SECRET])
    assert tickets.check(tickets.issue(user, 60)).user == user


@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    tickets = Tickets([SECRET])
    text = tickets.issue("ann", 60)
    content = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    assert refused(tickets, base64.urlsafe_b64encode(content).decode().rstrip("=")) == "ticket"


@given(st.text(max_size=2000))
def test_anything_else_is_refused(text: str) -> None:
    assert refused(Tickets([SECRET]), text) == "ticket"


def test_a_ticket_ends() -> None:
    now = [1000.0]
    tickets = Tickets([SECRET], clock=lambda: now[0])
    text = tickets.issue("ann", 60)
    now[0] = 1059.5
    assert tickets.check(text).user == "ann"
    now[0] = 1060.0
    assert refused(tickets, text) == "expired"


def test_secrets_are_changed_one_after_the_other() -> None:
    """The new one signs; what the old one signed is good until that is dropped."""
    old = Tickets([SECRET]).issue("ann", 60)
    both = Tickets([OTHER, SECRET])
    assert both.check(old).user == "ann"
    assert refused(Tickets([OTHER]), old) == "ticket"
    assert Tickets([OTHER]).check(both.issue("ann", 60)).user == "ann"


@pytest.mark.parametrize("secrets", [[], [b"short"], [SECRET, b""]])
def test_short_secrets_are_refused(secrets: list[bytes]) -> None:
    with pytest.raises(UsageError):
        Tickets(secrets)
