"""What a replica process is told: a TOML file, the environment over it, flags over both.

id = 1                               # KVSVR_ID, --id
dir = "/var/lib/kvsvr"               # KVSVR_DIR, --dir
listen = "127.0.0.1:7101"            # KVSVR_LISTEN, --listen            clients
peer_listen = "127.0.0.1:7201"       # KVSVR_PEER_LISTEN, --peer-listen  the other replicas
set = "kvsvr"                        # KVSVR_SET, --set                  the same for all of a set, and for no other
shards = 64                          # KVSVR_SHARDS, --shards            fixed when the set is made
secret_file = "/etc/kvsvr/secret"    # KVSVR_SECRET_FILE, --secret-file  what only replicas of the set know
[peers]                              # KVSVR_PEERS="2=host:port,3=host:port", --peer 2=host:port --peer 3=host:port
2 = "127.0.0.1:7202"
3 = "127.0.0.1:7203"
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvsvr.errors import UsageError, shown

Address = tuple[str, int]

NAMES: Final = ("id", "dir", "listen", "peer_listen", "set", "shards", "secret_file", "peers")
DEFAULTS: Final = {"listen": "127.0.0.1:7101", "peer_listen": "127.0.0.1:7201", "set": "kvsvr", "shards": 64}
PREFIX: Final = "KVSVR_"
NODE_MAX: Final = 65_535
SHARDS_MAX: Final = 1024
SECRET_SIZE_MIN: Final = 16
SIZES: Final = (1, 3, 5)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One replica's settings, checked. `peers` are the others of the set, by id: where they listen for each other."""

    node: int
    directory: Path
    client_address: Address
    peer_address: Address
    peers: Mapping[int, Address]
    set_name: str
    shard_count: int
    secret: bytes

    def __post_init__(self) -> None:
        if self.node in self.peers:
            raise UsageError(f"peers: {self.node} is this replica's own id; name the others")
        if len(self.peers) + 1 not in SIZES:
            raise UsageError(f"peers: a set has 1, 3 or 5 replicas, not {len(self.peers) + 1}: name all the others")
        if not _is_loopback(self.client_address):
            raise UsageError(
                f"listen: {_text(self.client_address)} can be reached from elsewhere, and clients are not asked who "
                "they are: listen on 127.0.0.1, and let who is elsewhere come through something that asks"
            )
        if self.peers and not self.secret and not _is_loopback(self.peer_address):
            raise UsageError(
                f"peer_listen: {_text(self.peer_address)} can be reached from elsewhere: replicas need a secret_file"
            )


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> ServerConfig:
    """The settings, each from where it is said last. `flags`: by the names above; None where a flag was not given.

    UsageError names the setting, what it is and what it may be.
    """
    found: dict[str, Any] = dict(DEFAULTS)
    if file is not None:
        found.update(_from_file(file))
    found.update({name: environment[_variable(name)] for name in NAMES if _variable(name) in environment})
    found.update({name: value for name, value in flags.items() if value is not None})
    for name in ("id", "dir"):
        if name not in found:
            raise UsageError(f"{name} is not said: in the file, as {_variable(name)}, or as --{name}")
    return ServerConfig(
        node=_number("id", found["id"], NODE_MAX),
        directory=Path(_string("dir", found["dir"])),
        client_address=address("listen", found["listen"]),
        peer_address=address("peer_listen", found["peer_listen"]),
        peers=_peers(found.get("peers", {})),
        set_name=_string("set", found["set"]),
        shard_count=_number("shards", found["shards"], SHARDS_MAX),
        secret=_secret(found.get("secret_file")),
    )


def address(name: str, text: Any) -> Address:
    """("127.0.0.1", 7101) of "127.0.0.1:7101"; of "[::1]:7101" ("::1", 7101)."""
    host, colon, port = str(text).rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UsageError(f"{name} is HOST:PORT, not {shown(text)}")
    return host.strip("[]"), int(port)


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _from_file(file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is no TOML: {error}") from None
    for name in found:
        if name not in NAMES:
            raise UsageError(f"{file}: there is no setting {shown(name)}; there are {', '.join(NAMES)}")
    return found


def _number(name: str, value: Any, limit: int) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= limit:
        raise UsageError(f"{name} is a number from 1 to {limit}, not {shown(value)}")
    return int(text)


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str | Path) or not str(value):
        raise UsageError(f"{name} is a text, not {shown(value)}")
    return str(value)


def _peers(value: Any) -> dict[int, Address]:
    """From a table of TOML, or "2=host:port,3=host:port"."""
    if isinstance(value, str):
        value = dict(part.partition("=")[::2] for part in value.split(",") if part)
    if not isinstance(value, Mapping):
        raise UsageError(f"peers is a table of ids and HOST:PORT, not {shown(value)}")
    return {_number("peers", node, NODE_MAX): address(f"peers: {node}", where) for node, where in value.items()}


def _secret(file: Any) -> bytes:
    if file is None:
        return b""
    try:
        secret = Path(_string("secret_file", file)).read_bytes().strip()
    except OSError as error:
        raise UsageError(f"secret_file: {file} cannot be read: {error.strerror}") from None
    if len(secret) < SECRET_SIZE_MIN:
        raise UsageError(f"secret_file: {file} holds {len(secret)} bytes; a secret has at least {SECRET_SIZE_MIN}")
    return secret


def _is_loopback(where: Address) -> bool:
    if where[0] == "localhost":
        return True
    try:
        return ipaddress.ip_address(where[0]).is_loopback
    except ValueError:
        return False


def _text(where: Address) -> str:
    return f"{where[0]}:{where[1]}"
