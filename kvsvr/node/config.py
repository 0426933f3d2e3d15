"""What a replica process is told: a TOML file, the environment over it, flags over both.

id = 1                               # KVSVR_ID, --id
dir = "/var/lib/kvsvr"               # KVSVR_DIR, --dir                  files are looked for from where this one is
listen = "127.0.0.1:7101"            # KVSVR_LISTEN, --listen            clients
peer_listen = "127.0.0.1:7201"       # KVSVR_PEER_LISTEN, --peer-listen  the other replicas
set = "kvsvr"                        # KVSVR_SET, --set                  the same for all of a set, and for no other
shards = 64                          # KVSVR_SHARDS, --shards            fixed when the set is made; alone: 1
password = "..."                     # KVSVR_PASSWORD                    what clients have to say first
secret_file = "/etc/kvsvr/secret"    # KVSVR_SECRET_FILE, --secret-file  what only replicas of the set know
status_file = "/run/kvsvr/status"    # KVSVR_STATUS_FILE, --status-file  how it is, for `kvsvr status`
clients_max = 10000                  # KVSVR_CLIENTS_MAX and so on, --clients-max; who comes then is sent away
request_ms = 5000                    # after which a command is answered with an error
stop_ms = 3000                       # after which a stop waits for nobody any more
word_size_max = "512 MiB"            # of one argument of a command
owed_size_max = "256 MiB"            # to a client that does not read; then it is cut
keep_size_max = "64 MiB"             # of the log's end, where records are kept for the others
silence_ms = 80                      # who is not heard for so long, and did not say that it ends, is taken for gone
await_hello = false                  # it waits for all the others at its start, not for a majority (decision 0030)
members = [1, 2, 3]                  # ids that the set began with; unsaid: its own and its peers'
replaces = [2]                       # of one that came later: in whose place, and in whose place that one was
durability = "version"               # "data": a majority has the bytes of every value, too, whatever a client asks for
inline_max = "4 KiB"                 # larger values travel beside the vote; 0: all do. At most 1 MiB
[peers]                              # KVSVR_PEERS="2=host:port,3=host:port", --peer 2=host:port --peer 3=host:port
2 = "127.0.0.1:7202"
3 = "127.0.0.1:7203"
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvsvr.errors import UsageError, shown

Address = tuple[str, int]

DEFAULTS: Final[dict[str, Any]] = {
    "listen": "127.0.0.1:7101",
    "peer_listen": "127.0.0.1:7201",
    "set": "kvsvr",
    "peers": {},
    "clients_max": 10_000,
    "request_ms": 5_000,
    "stop_ms": 3_000,
    "word_size_max": "512 MiB",
    "owed_size_max": "256 MiB",
    "keep_size_max": "64 MiB",
    "silence_ms": 80,
    "await_hello": False,
    "replaces": [],
    "durability": "version",
    "inline_max": "4 KiB",
}
NAMES: Final = ("id", "dir", *DEFAULTS, "shards", "secret_file", "password", "status_file", "members")
SHARDS_DEFAULT: Final = 64
TICK_MS: Final = 5
"""As the server has it by itself."""
PREFIX: Final = "KVSVR_"
NODE_MAX: Final = 65_535
SHARDS_MAX: Final = 1024
DURABILITIES: Final = ("version", "data")
INLINE_SIZE_MAX: Final = 1 << 20
SECRET_SIZE_MIN: Final = 16
PASSWORD_SIZE_MAX: Final = 127
SIZES: Final = (1, 3, 5)
UNITS: Final = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server spends on its clients; the names are those of kv_server_options."""

    client_count_max: int
    request_ms: int
    stop_ms: int
    word_size_max: int
    owed_size_max: int


@dataclass(frozen=True, slots=True)
class Rules:
    """How the replica works; the names are those of kv_replica_options."""

    keep_size_max: int
    silence_ticks: int
    await_hello: bool


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One replica's settings, checked. `peers` are the others of the set, by id: where they listen for each other; more
    may be learned of (kvsvr/node/nodes.py). `members` are those that the set began with."""

    node: int
    directory: Path
    client_address: Address
    peer_address: Address
    peers: Mapping[int, Address]
    set_name: str
    shard_count: int
    secret: bytes
    status_file: Path | None
    limits: Limits
    rules: Rules
    password: bytes
    members: Sequence[int]
    replaces: Sequence[int]

    @property
    def joins(self) -> bool:
        """It came later: it learns, and is made a member."""
        return self.node not in self.members

    @property
    def alone(self) -> bool:
        return len(self.members) == 1

    durability: str
    """"data": a write is answered when a majority has the bytes of what it wrote, and not its version alone."""
    inline_max: int
    """Values above it travel beside the vote."""


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> ServerConfig:
    """The settings, each from where it is said last. `flags`: by the names above; None where a flag was not given.

    UsageError names the setting, what it is, what it may be, and where it is to be corrected.
    """
    said = _Said()
    if file is not None:
        said.file(file)
    for name in NAMES:
        if _variable(name) in environment:
            said.say(name, environment[_variable(name)], _variable(name))
        if flags.get(name) is not None:
            said.say(name, flags[name], flag(name))
    config = ServerConfig(
        node=said.number("id", NODE_MAX),
        directory=said.path("dir"),
        client_address=said.address("listen"),
        peer_address=said.address("peer_listen"),
        peers=said.peers(),
        set_name=said.string("set"),
        shard_count=_shard_count(said),
        secret=said.secret(),
        status_file=said.path("status_file") if said.has("status_file") else None,
        limits=Limits(
            client_count_max=said.number("clients_max", 1_000_000),
            request_ms=said.number("request_ms", 3_600_000),
            stop_ms=said.number("stop_ms", 3_600_000),
            word_size_max=said.size("word_size_max", 512 << 20),
            owed_size_max=said.size("owed_size_max", 1 << 40),
        ),
        rules=Rules(
            keep_size_max=said.size("keep_size_max", 1 << 50),
            silence_ticks=said.number("silence_ms", 3_600_000) // TICK_MS + 1,
            await_hello=said.yes("await_hello"),
        ),
        password=said.password(),
        members=_members(said),
        replaces=said.nodes("replaces"),
        durability=said.one_of("durability", DURABILITIES),
        inline_max=said.size("inline_max", INLINE_SIZE_MAX, least=0),
    )
    _check_set(config, said)
    return config


def address(text: Any) -> Address:
    """("127.0.0.1", 7101) of "127.0.0.1:7101"; of "[::1]:7101" ("::1", 7101). ValueError: it is none."""
    host, colon, port = str(text).rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"{shown(text)} is not HOST:PORT")
    return host.strip("[]"), int(port)


def text_of(where: Address) -> str:
    return f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"


def _check_set(config: ServerConfig, said: _Said) -> None:
    """What no setting can be told by itself."""
    count = len(config.members)
    if config.node in config.peers:
        raise said.wrong("peers", f"name the others of the set; {config.node} is this replica's own id")
    if count not in SIZES and not said.has("members"):
        raise said.wrong("peers", f"name all the others: a set has 1, 3 or 5 replicas, not {count}")
    if count not in SIZES:
        raise said.wrong("members", f"are those that the set began with, 1, 3 or 5 of them, not {count}")
    if config.joins and (count == 1 or not config.peers):
        raise said.wrong("members", f"are {shown(list(config.members))}, and nobody can join that with these peers")
    if not config.joins and config.replaces:
        raise said.wrong("replaces", f"is for who came later, and {config.node} is one of the members")
    if not _is_loopback(config.client_address) and not config.password:
        raise said.wrong(
            "listen",
            f"is {text_of(config.client_address)}, which can be reached from elsewhere, and clients are not asked who "
            "they are: listen on 127.0.0.1, or set a password",
        )
    if config.peers and not config.secret and not _is_loopback(config.peer_address):
        raise said.wrong(
            "peer_listen",
            f"is {text_of(config.peer_address)}, which can be reached from elsewhere: there replicas need a "
            "secret_file, the same for all of the set",
        )


class _Said:
    """What was said of each setting, and where."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Any, str]] = {name: (value, "") for name, value in DEFAULTS.items()}
        self._folder: dict[str, Path] = {}

    def say(self, name: str, value: Any, place: str) -> None:
        self._values[name] = (value, place)
        self._folder.pop(name, None)

    def file(self, file: Path) -> None:
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}: name another with --config") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} is no TOML: {error}: correct it there") from None
        for name, value in found.items():
            if name not in NAMES:
                raise UsageError(
                    f"{file}: there is no setting {shown(name)}: drop it, or correct its name; "
                    f"there are {', '.join(NAMES)}"
                )
            self.say(name, value, f"it in {file}")
            self._folder[name] = file.parent

    def has(self, name: str) -> bool:
        return name in self._values

    def wrong(self, name: str, what: str) -> UsageError:
        place = self._values[name][1]
        cure = f": correct {place}" if place else f": say it in the file, as {_variable(name)} or as {flag(name)}"
        return UsageError(f"{name} {what}{cure}")

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise UsageError(f"{name} is not said: say it in the file, as {_variable(name)}, or as {flag(name)}")
        return self._values[name][0]

    def number(self, name: str, limit: int) -> int:
        found = _number(self._value(name), limit)
        if found is None:
            raise self.wrong(name, f"is a number from 1 to {limit}, not {shown(self._value(name))}")
        return found

    def size(self, name: str, limit: int, *, least: int = 1) -> int:
        """Bytes; of text with a unit, too."""
        value = self._value(name)
        parts = re.fullmatch(r"(\d+) ?([KMG]iB|B|)", str(value), re.IGNORECASE | re.ASCII)
        found = None if parts is None else _number(int(parts[1]) * UNITS[parts[2].lower()], limit, least)
        if found is None or isinstance(value, bool):
            raise self.wrong(name, f'is a size like 65536 or "64 MiB", at most {limit}, not {shown(value)}')
        return found

    def yes(self, name: str) -> bool:
        value = self._value(name)
        if str(value).lower() not in ("true", "false"):
            raise self.wrong(name, f"is true or false, not {shown(value)}")
        return str(value).lower() == "true"

    def nodes(self, name: str) -> tuple[int, ...]:
        """From a list of TOML, or "1,2,3"."""
        value = self._value(name)
        parts = value if isinstance(value, Sequence) and not isinstance(value, str) else str(value).split(",")
        found = [_number(part, NODE_MAX) for part in parts]
        if None in found or len(set(found)) != len(found):
            raise self.wrong(name, f"are different ids from 1 to {NODE_MAX}, not {shown(value)}")
        return tuple(number for number in found if number is not None)

    def one_of(self, name: str, words: Sequence[str]) -> str:
        value = self._value(name)
        if value not in words:
            raise self.wrong(name, f"is {' or '.join(words)}, not {shown(value)}")
        return str(value)

    def string(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str | Path) or not str(value):
            raise self.wrong(name, f"is a text, not {shown(value)}")
        return str(value)

    def path(self, name: str) -> Path:
        return self._folder.get(name, Path()) / self.string(name)

    def address(self, name: str) -> Address:
        try:
            return address(self._value(name))
        except ValueError:
            raise self.wrong(name, f"is HOST:PORT, not {shown(self._value(name))}") from None

    def peers(self) -> dict[int, Address]:
        """From a table of TOML, or "2=host:port,3=host:port"."""
        value = self._value("peers")
        if isinstance(value, str):
            value = dict(part.partition("=")[::2] for part in value.split(",") if part)
        if not isinstance(value, Mapping):
            raise self.wrong("peers", f"is a table of ids and HOST:PORT, not {shown(value)}")
        found = {}
        for node, where in value.items():
            number = _number(node, NODE_MAX)
            try:
                found[number or 0] = address(where)
            except ValueError:
                number = None
            if number is None:
                raise self.wrong(
                    "peers", f"is of ids from 1 to {NODE_MAX} and HOST:PORT, not {shown(node)} = {shown(where)}"
                )
        return found

    def password(self) -> bytes:
        value = self._value("password") if self.has("password") else ""
        if not isinstance(value, str) or len(value.encode()) > PASSWORD_SIZE_MAX or "\0" in value:
            raise self.wrong("password", f"is a text of up to {PASSWORD_SIZE_MAX} bytes")
        return value.encode()

    def secret(self) -> bytes:
        if not self.has("secret_file"):
            return b""
        file = self.path("secret_file")
        try:
            secret = file.read_bytes().strip()
        except OSError as error:
            raise self.wrong("secret_file", f"cannot be read: {file}: {error.strerror}") from None
        if len(secret) < SECRET_SIZE_MIN:
            raise self.wrong(
                "secret_file", f"is {file} with {len(secret)} bytes; a secret has at least {SECRET_SIZE_MIN}"
            )
        return secret


def _shard_count(said: _Said) -> int:
    """Alone there is nobody to share the work with, and in one shard a command may be about any keys."""
    if said.has("shards"):
        return said.number("shards", SHARDS_MAX)
    return SHARDS_DEFAULT if said.peers() else 1


def _members(said: _Said) -> Sequence[int]:
    if said.has("members"):
        return sorted(said.nodes("members"))
    return sorted({said.number("id", NODE_MAX), *said.peers()})


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def flag(name: str) -> str:
    return "--peer" if name == "peers" else "--" + name.replace("_", "-")


def _number(value: Any, limit: int, least: int = 1) -> int | None:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or not least <= int(text) <= limit:
        return None
    return int(text)


def _is_loopback(where: Address) -> bool:
    if where[0] == "localhost":
        return True
    try:
        return ipaddress.ip_address(where[0]).is_loopback
    except ValueError:
        return False
