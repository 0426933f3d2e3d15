"""The page of kvsvr chat in a browser: two users, three tabs. Needs a chromium of the system's (Debian: chromium)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Final

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.gateway.conftest import Gateway, Start

CHROMIUM: Final = os.environ.get("KVSVR_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS: Final = 20_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        # Root has no sandbox, and /dev/shm of a container is small.
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        with playwright.chromium.launch(executable_path=CHROMIUM, args=flags) as one:
            yield one


class Tab:
    """A device: what somebody does there, and sees."""

    def __init__(self, page: Page, address: str, user: str) -> None:
        self.page = page
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda line: self.faults.append(line.text) if line.type == "error" else None)
        page.goto(f"http://{address}/")
        self.fill("name", user)
        self.sees_line("online")

    def fill(self, field: str, text: str) -> None:
        self.page.locator(f"#{field}").fill(text)
        self.page.locator(f"#{field}").press("Enter")

    def talk(self, user: str) -> None:
        self.fill("other", user)

    def open(self, conversation: str) -> None:
        self.page.locator(f'li[data-name="{conversation}"]').click()

    def send(self, text: str) -> None:
        self.fill("text", text)

    def sees(self, *texts: str) -> None:
        """Exactly these messages, in this order, and none that is not sent yet."""
        expect(self.page.locator("#messages li > span")).to_have_text(list(texts))

    def sees_unread(self, conversation: str, count: int) -> None:
        found = self.page.locator(f'li[data-name="{conversation}"] .unread')
        expect(found).to_have_text([str(count)] if count else [])

    def sees_line(self, state: str) -> None:
        expect(self.page.locator("#line")).to_have_text(state)

    def check(self) -> None:
        """The gateway says that this copy is right."""
        self.page.locator("#check").click()
        expect(self.page.locator("#log li", has_text="the copy is right").first).to_be_visible()


@pytest.fixture
def gateway(start: Start) -> Gateway:
    return start(login=True, page=True)


@pytest.fixture
def tabs(browser: Browser, gateway: Gateway) -> Iterator[tuple[Tab, Tab, Tab]]:
    """Ann's phone, her laptop, and Bob's; none of them has said anything on its console in the end."""
    with browser.new_context() as context:
        three = [Tab(context.new_page(), gateway.address, user) for user in ("ann", "ann", "bob")]
        yield three[0], three[1], three[2]
        assert [fault for tab in three for fault in tab.faults if "ERR_" not in fault] == []


def test_two_users_three_tabs(tabs: tuple[Tab, Tab, Tab]) -> None:
    """What Ann says on one device is on her other one and at Bob's; what she reads on one is read on the other."""
    phone, laptop, bob = tabs
    phone.talk("bob")
    phone.send("hello <b>Bob</b> & co")
    bob.sees_unread("u/ann", 1)
    bob.open("u/ann")
    bob.sees("hello <b>Bob</b> & co")
    laptop.open("u/bob")
    laptop.sees("hello <b>Bob</b> & co")
    phone.talk("cat")
    laptop.talk("cat")
    bob.send("hi")
    phone.sees_unread("u/bob", 1)
    laptop.sees_unread("u/bob", 1)
    phone.open("u/bob")
    phone.sees("hello <b>Bob</b> & co", "hi")
    laptop.sees_unread("u/bob", 0)
    phone.page.locator("#messages .recall").first.click()
    bob.sees("taken back", "hi")
    for tab in tabs:
        tab.check()


def test_a_group(tabs: tuple[Tab, Tab, Tab]) -> None:
    """Who comes later does not see what was said before; who has left does not see what is said then."""
    phone, laptop, bob = tabs
    phone.fill("group", "tea")
    phone.send("nobody here yet")
    phone.sees("nobody here yet")
    phone.fill("guest", "bob")
    bob.open("g/tea")
    phone.send("at four")
    bob.sees("at four")
    bob.send("good")
    laptop.open("g/tea")
    laptop.sees("nobody here yet", "at four", "good")
    bob.page.locator("#leave").click()
    expect(bob.page.locator("#people")).to_have_text("you have left")
    phone.send("has he gone")
    laptop.sees("nobody here yet", "at four", "good", "has he gone")
    bob.sees("at four", "good")


def test_offline_and_back(tabs: tuple[Tab, Tab, Tab]) -> None:
    """A tab that was cut off, and one that was loaded anew, go on from their keys; nothing is lost, nothing twice."""
    phone, laptop, bob = tabs
    phone.talk("bob")
    phone.send("one")
    bob.open("u/ann")
    bob.sees("one")
    bob.page.locator("#line").click()
    bob.sees_line("offline")
    phone.send("two")
    bob.send("three")
    expect(bob.page.locator("#messages .pending")).to_have_text(["three"])
    laptop.open("u/bob")
    laptop.sees("one", "two")
    bob.page.reload()
    bob.open("u/ann")
    bob.sees("one", "two", "three")
    phone.sees("one", "two", "three")
    expect(bob.page.locator("#resyncs")).to_have_text("0")
    bob.check()


def test_events_in_a_browser(browser: Browser, gateway: Gateway) -> None:
    """As docs/gateway.md has it: an EventSource hears of what is new, though events have no data."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://{gateway.address}/")
        page.evaluate(
            """(ticket) => new Promise((opened) => {
                const events = new EventSource(`/v1/events?device=phone&ticket=${ticket}`);
                window.heard = new Promise((heard) => events.addEventListener("new", () => heard(events.readyState)));
                events.onopen = opened;
            })""",
            gateway.ticket("ann"),
        )
        gateway.chat.register("ann")
        gateway.chat.send("ann", "u/ann", "a note")
        assert page.evaluate("window.heard") == 1


def test_another_gateway_takes_over(browser: Browser, start: Start) -> None:
    """The one that a tab is connected to dies; one at the same address goes on with it."""
    first = start(login=True, page=True)
    with browser.new_context() as context:
        ann = Tab(context.new_page(), first.address, "ann")
        ann.talk("ann")
        ann.send("one")
        ann.sees("one")
        first.close()
        ann.sees_line("connecting")
        ann.send("two")
        second = start(login=True, page=True, port=int(first.address.rpartition(":")[2]))
        second.chat.send("ann", "u/ann", "three")
        ann.page.locator("#messages li", has_text="three").wait_for(timeout=WAIT_MS)
        expect(ann.page.locator("#messages li")).to_have_count(3)
        expect(ann.page.locator("#messages .pending")).to_have_count(0)
        ann.check()
