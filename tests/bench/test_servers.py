"""`python -m bench servers` may be trusted: the generator sees wrong answers, kills lose nothing unseen, rows stand
beside whom they should, and a tiny run of real processes gives every row. Nothing here looks at how fast anything was.
"""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis.crc import key_slot

from bench import page, plots
from bench.cli import main
from bench.document import SYNCED, Timeline, read
from bench.servers import generator, kills, systems
from bench.servers.cells import CELLS, STALE, UNCONFIRMED, UNSYNCED_PEERS, WORKS
from bench.servers.generator import Answered, arguments, run
from bench.servers.processes import Process, ServerFailed, until
from bench.servers.run import Found, Plan
from bench.servers.systems import SYSTEMS
from bench.timeline import picture, summary


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    generator.build()


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server that answers whatever has come, in one piece, with what `answer` makes of it. Its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            while said := connection.recv(1 << 16):
                connection.sendall(answer(said))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


class Memory:
    """GET and SET of RESP, one after the other."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def __call__(self, said: bytes) -> bytes:
        words = said.split(b"\r\n")
        if words[2] == b"SET":
            self.values[words[4]] = said.split(b"\r\n", 6)[6][:-2]
            return b"+OK\r\n"
        value = self.values.get(words[4])
        return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


# --- the generator ---


def test_what_was_written_is_read_back() -> None:
    memory = Memory()
    with answering(memory) as port:
        assert run("resp", [port], "fill", c=3, k=200).operations == 200
        assert len(memory.values) == 200
        assert {len(key) for key in memory.values} == {16}
        assert len(set(memory.values.values())) == 200
        found = run("resp", [port], "get", c=3, k=200, t=0.2)
        assert found.operations > 0
        assert found.all_operations >= found.operations
        assert list(found.curve) == ["p50", "p90", "p99", "p99.9", "max"]
        assert found.curve["p50"] <= found.curve["max"]


def test_a_request_goes_to_who_owns_its_key(tmp_path: Path) -> None:
    """Of two servers that are asked by one client, each is sent the keys of its slots, and no others."""
    slots = bytes(n % 2 for n in range(16384))
    (tmp_path / "owners").write_bytes(slots)
    memories = Memory(), Memory()
    with answering(memories[0]) as first, answering(memories[1]) as second:
        assert run("resp", [first, second], "fill", c=1, k=200, o=tmp_path / "owners").operations == 200
        assert run("resp", [first, second], "get", c=3, k=200, t=0.2, o=tmp_path / "owners").operations > 0
    assert min(len(memory.values) for memory in memories) > 0
    for place, memory in enumerate(memories):
        assert {slots[key_slot(key)] for key in memory.values} == {place}
    assert sum(len(memory.values) for memory in memories) == 200


def test_owners_that_are_no_ports_are_refused(tmp_path: Path) -> None:
    (tmp_path / "owners").write_bytes(bytes([2]) * 16384)
    with pytest.raises(ServerFailed, match="Invalid argument"):
        run("resp", [1, 2], "set", o=tmp_path / "owners")


@pytest.mark.parametrize("answer", [b"$-1\r\n", b"$3\r\nabc\r\n", b"_\r\n", b"$100\r\n" + bytes(100) + b"\r\n"])
def test_a_wrong_answer_ends_the_run(answer: bytes) -> None:
    with answering(lambda _: answer) as port, pytest.raises(ServerFailed, match="not written"):
        run("resp", [port], "get", t=0.2)


@pytest.mark.parametrize(
    ("dialect", "mode", "answer"),
    [
        ("resp", "set", b"-ERR no\r\n"),
        ("resp-wait", "set", b"+OK\r\n:0\r\n"),
        ("resp-readonly", "get", b"-ERR unknown command 'READONLY'\r\n"),
        ("etcd", "set", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"),
        ("nats", "set", b"-ERR 'no'\r\n"),
        ("nats", "set", b"HMSG _INBOX.0.r 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"),
        ("nats", "set", b'MSG _INBOX.0.r 1 24\r\n{"error":{"code":503}}  \r\n'),
    ],
)
def test_a_refusal_ends_the_run(dialect: str, mode: str, answer: bytes) -> None:
    with answering(lambda _: answer) as port, pytest.raises(ServerFailed, match="kv_load: "):
        run(dialect, [port], mode, t=0.2)


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        ("resp-wait", b"+OK\r\n:1\r\n"),
        ("etcd", b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"header":{}}'),
        ("etcd", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ("nats", b'INFO {}\r\nPING\r\nMSG _INBOX.0.r 1 29\r\n{"stream":"KV_bench","seq":1}\r\n'),
    ],
)
def test_an_acknowledgement_is_one_in_every_dialect(dialect: str, answer: bytes) -> None:
    """What has no request in it, NATS' PONG, gets none."""
    with answering(lambda said: answer if b"PUB" in said or b"SET" in said or b"POST" in said else b"") as port:
        assert run(dialect, [port], "set", t=0.2).operations > 0


def test_a_request_is_sent_again_where_somebody_answers() -> None:
    """One port refuses connections, one says no: all is acknowledged by the third."""
    closed = socket.create_server(("127.0.0.1", 0))
    nobody = int(closed.getsockname()[1])
    closed.close()
    memory = Memory()
    with answering(memory) as port, answering(lambda _: b"-CLUSTERDOWN\r\n") as no:
        found = run("resp", [nobody, no, port], "fill", c=6, k=50, x=1000)
    assert found.operations == 50
    assert len(memory.values) == 50
    assert found.retries >= 4


def test_what_is_lost_after_a_run_is_counted(tmp_path: Path) -> None:
    memory = Memory()
    records = tmp_path / "records"
    with answering(memory) as port:
        clients = generator.Background("resp", [port], records, c=2, x=1000, i=1000, b=5000)
        until(lambda: len(memory.values) > 20, "writes")
        outcome, answered = clients.stop()
        assert len(answered) == outcome.operations
        assert all(one.sent_ns < one.answered_ns for one in answered)
        assert run("resp", [port], "check", r=records).lost == 0
        first, second = list(memory.values)[:2]
        del memory.values[first]
        memory.values[second] = b"another"
        checked = run("resp", [port], "check", c=2, r=records)
    assert checked.operations == len(answered)
    assert checked.lost == 2


@pytest.mark.parametrize("wrong", [{"c": 0}, {"P": 1000}, {"k": 0}, {"v": 0}])
def test_options_that_make_no_load_are_refused(wrong: dict[str, int]) -> None:
    assert subprocess.run(arguments("resp", [1], "set", **wrong), capture_output=True, check=False).returncode == 2
    assert subprocess.run(arguments("latin", [1], "set"), capture_output=True, check=False).returncode == 2
    assert subprocess.run(arguments("resp", [99999], "set"), capture_output=True, check=False).returncode == 2


# --- gaps and timelines ---


def ms(sent: float, answered: float) -> Answered:
    return Answered(int(sent * 1e6), int(answered * 1e6))


def test_a_gap_is_the_longest_wait_from_the_kill_on() -> None:
    """One had been under way for long when the kill came, one was over, one was sent when the process was back."""
    answered = [ms(0, 90), ms(50, 130), ms(99, 101), ms(110, 180), ms(300, 900)]
    assert kills.gap_ms(answered, 100 * 10**6, 250 * 10**6) == 70
    assert kills.gap_ms([], 100, 200) == 0


def test_a_timeline_has_holes_where_nothing_was_answered() -> None:
    answered = [ms(10, 20), ms(10, 30), ms(30, 160)]
    found = kills.buckets("kvsvr", answered, 0, 50 * 10**6, 150 * 10**6, 200 * 10**6)
    assert found.rates == [40, 0, 0, 20]
    assert found.p50_us == [20_000, None, None, 130_000]
    assert found.p99_us == [20_000, None, None, 130_000]
    assert (found.killed_ms, found.returned_ms) == (50, 150)
    assert "nothing for 100 ms" in summary(found)
    drawn = picture(found)
    assert drawn.count("<path") == 1 + 2 * 2
    assert "started again" in drawn


def test_a_timeline_of_nothing_can_be_drawn() -> None:
    assert "<svg" in picture(Timeline("kvsvr", 50, 10, 20, [], [], []))
    assert "<svg" in picture(Timeline("kvsvr", 50, 10, 20, [0.0], [None], [None]))


# --- rows ---


def test_nobody_who_does_not_sync_stands_in_a_row_of_those_who_do() -> None:
    syncing = {"kvsvr", "kvsvr-one", "kvsvr-data", "kvsvr-digests", "etcd", "redis"}
    for cell in CELLS.values():
        if not set(cell.systems) <= syncing:
            assert cell.durability in (UNSYNCED_PEERS, UNCONFIRMED, STALE), cell.name


def test_every_row_can_be_measured() -> None:
    for cell in CELLS.values():
        peers = [SYSTEMS[system].peer for system in cell.systems]
        assert len(set(peers)) == len(peers)
        for system in cell.systems:
            if cell.work is not None:
                assert WORKS[cell.work].kind in SYSTEMS[system].dialects, (cell.name, system)


# --- processes ---


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    process = Process(["sh", "-c", "echo no room; exit 3"], tmp_path / "log")
    with pytest.raises(ServerFailed, match="no room"):
        until(lambda: False, "it", [process])


def test_a_peer_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(systems.Etcd, "program", "no-such-etcd")
    options = ["--peers", "etcd", "--dir", str(tmp_path)]
    assert main(["servers", *options]) == 2
    assert "no-such-etcd is not installed: apt-get install etcd-server" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_set_answers_what_it_is_asked_and_ends(name: str, tmp_path: Path) -> None:
    """Each way that it has of being asked, and every process is gone afterwards."""
    if SYSTEMS[name].version() is None:
        pytest.skip(f"{SYSTEMS[name].program} is not installed")
    with SYSTEMS[name](tmp_path) as system:
        assert run(system.dialects["put"], system.ports_of("put"), "fill", c=4, k=100).operations == 100
        for kind in set(system.dialects) - {"put"}:
            until(lambda kind=kind: _answers(system, kind), f"{name}: {kind}")  # type: ignore[misc]
        assert system.anonymous_size() > 0
        assert system.processes[system.victim(0)] in system.processes
    assert all(process.ended for process in system.processes)


def _answers(system: systems.System, kind: str) -> bool:
    """What may be stale may not be there at once."""
    try:
        return run(system.dialects[kind], system.ports_of(kind), "get", c=2, k=100, t=0.2).operations > 0
    except ServerFailed as error:
        if kind != "stale" or "not written" not in str(error):
            raise
        return False


TINY = ["--keys", "100", "--seconds", "0.2", "--repeat", "1"]


def test_a_tiny_run_gives_every_row_of_kvsvr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "DOWN_SECONDS", 1.0)
    monkeypatch.setattr(kills, "BACK_SECONDS", 1.0)
    out = tmp_path / "run.json"
    options = [*TINY, "--quick", "--kills", "1", "--peers", "kvsvr", "--dir", str(tmp_path), "--json", str(out)]
    assert main(["servers", *options, "--page"]) == 0
    document = read(out)
    assert {cell.name for cell in document.cells} == {name for name, cell in CELLS.items() if not cell.again}
    assert all(cell.subject is not None for cell in document.cells)
    assert next(cell for cell in document.cells if cell.name == "lost").bar_met
    assert [timeline.peer for timeline in document.timelines] == ["kvsvr"]
    assert "kvsvr through a kill" in out.with_suffix(".html").read_text()
    assert "timeline-kvsvr.png" in [path.name for path in plots.plot(document, tmp_path / "plots")]
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "run.html", "plots"}


def test_an_interrupted_run_leaves_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(plan: Plan, found: Found, progress: object) -> None:
        found.kills["kvsvr"] = kills.Kills([1.0, 3.0], 100, 2, 0, 1.0)
        found.failed(systems.Etcd, 0, ServerFailed("it did not start"))
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.servers.cli.run", interrupted)
    monkeypatch.setattr("bench.servers.cli._installed", lambda peers: (dict.fromkeys(peers, "1.0"), {}))
    out = tmp_path / "run.json"
    assert main(["servers", "--seconds", "0.1", "--dir", str(tmp_path), "--json", str(out)]) == 130
    document = read(out)
    lost = next(cell for cell in document.cells if cell.name == "lost")
    assert lost.subject is not None
    assert (lost.subject.median, lost.bar_met) == (2, False)
    assert [failure.text for failure in document.failures] == ["ServerFailed: it did not start"]
    assert document.run["interrupted"]


def test_versions_alone_stand_beside_bytes(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    cells = "set-64KiB-16-data,set-16-digests,set-64-digests,get-64-digests"
    peers = "kvsvr,kvsvr-data,kvsvr-digests"
    options = [*TINY, "--kills", "0", "--cells", cells, "--peers", peers, "--dir", str(tmp_path)]
    assert main(["servers", *options, "--json", str(out)]) == 0
    document = read(out)
    assert [cell.name for cell in document.cells] == cells.split(",")
    assert [cell.best_peer for cell in document.cells] == ["kvsvr-data"] + 3 * ["kvsvr-digests"]
    assert all(cell.ratio is not None for cell in document.cells)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_redis_stands_beside(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    cells = "one-set-16,one-get-64,set-64-unsynced,get-64-unsynced"
    options = [*TINY, "--kills", "0", "--cells", cells, "--peers", "kvsvr,redis,redis-wait", "--dir", str(tmp_path)]
    assert main(["servers", *options, "--json", str(out)]) == 0
    document = read(out)
    found = {cell.name: list(cell.figures) for cell in document.cells}
    assert found == {
        "set-64-unsynced": ["kvsvr", "redis-wait"],
        "get-64-unsynced": ["kvsvr", "redis-wait"],
        "one-set-16": ["kvsvr", "redis"],
        "one-get-64": ["kvsvr", "redis"],
    }
    assert all(cell.ratio is not None for cell in document.cells)
    assert {cell.durability for cell in document.cells} == {SYNCED, UNSYNCED_PEERS, UNCONFIRMED}
    facts = json.loads(out.read_text())
    assert facts["run"]["workload"] == "servers"
    assert "beside its peers" in page.page(document)
