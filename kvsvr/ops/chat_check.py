"""Who is to have which messages of a chat log, computed from the file alone: a set of who is there, line by line.

Nothing is shared with the replay, chat_log.py, but the words of its opening comment: not how a line is read, nor
groups, epochs or queues. What both get wrong in the same way would have to be written down wrong there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

Line: TypeAlias = tuple[str, str, str]
"""What, nick, and text or new nick."""


def lines_of(file: Path) -> list[Line]:
    content = file.read_bytes().decode("utf-8", "replace")
    return [line for raw in content.split("\n") for line in [_line(raw.rstrip("\r"))] if line]


def expected(file: Path) -> dict[str, list[tuple[str, str]]]:
    """Nick -> sender and text of each message that was said while he was there."""
    lines = lines_of(file)
    there = _there_at_start(lines)
    given: dict[str, list[tuple[str, str]]] = {nick: [] for nick in there}
    for what, nick, rest in lines:
        if what == "come" or (what == "say" and nick not in there):
            there.add(nick)
        elif what == "go":
            there.discard(nick)
        elif what == "name" and nick in there:
            there.discard(nick)
            there.add(rest)
        for one in there:
            given.setdefault(one, [])
            if what == "say":
                given[one].append((nick, rest))
    return given


def _there_at_start(lines: list[Line]) -> set[str]:
    first: dict[str, str] = {}
    for what, nick, rest in lines:
        first.setdefault(nick, what)
        if what == "name":
            first.setdefault(rest, "come")
    return {nick for nick, what in first.items() if what != "come"}


def _line(raw: str) -> Line | None:
    if raw.startswith("==="):
        return _notice(raw[3:])
    if len(raw) < 8 or raw[0] != "[" or raw[3] != ":" or raw[6:8] != "] " or not (raw[1:3] + raw[4:6]).isdigit():
        return None
    rest = raw[8:]
    if rest.startswith("<") and ">" in rest:
        nick, text = rest[1:].split(">", 1)
        return ("say", nick, text[1:] if text.startswith(" ") else text) if nick and " " not in nick else None
    star = rest[: len(rest) - len(rest.lstrip(" "))]
    if len(star) <= 2 and rest.lstrip(" ").startswith("* "):
        nick, _, text = rest.lstrip(" ")[2:].partition(" ")
        return ("say", nick, text) if nick else None
    return None


def _notice(raw: str) -> Line | None:
    nick, _, text = raw[1:].partition(" ")
    if not raw.startswith(" ") or not nick:
        return None
    if text.startswith("is now known as ") and len(text.split(" ")) == 5:
        return "name", nick, text.split(" ")[4]
    if text.startswith("["):
        for what, words in (("come", "] has joined "), ("go", "] has left ")):
            squeezed = text.replace("]  has", "] has")
            if words in squeezed and squeezed.split(words, 1)[1][:1] in ("#", "&"):
                return what, nick, ""
    return "say", nick, text
