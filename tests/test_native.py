"""The C core as Python sees it: ffi.cdef against the headers, word for word, and the C tests in all three builds."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvsvr.native import ffi, lib

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "native"
HEADERS = sorted((NATIVE / "include" / "kv").glob("*.h"))

FLAVOURS = ("plain", "asan", "tsan")
TESTS = sorted(source.stem for source in (NATIVE / "tests").glob("test_*.c"))
TEST_TIMEOUT_S = 900
# What these found out is told in figures (how many crashes, how many damages), which belong in the log of every run.
TOLD = ("test_crash", "test_damage", "test_faults")


def folded(text: str) -> str:
    """Without comments, with one space where there was any white space: what the compiler sees of a declaration."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text).strip()


def declarations(text: str) -> list[str]:
    """The declarations of a C text, each up to the semicolon that is not inside braces."""
    found, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if sign == ";" and depth == 0:
            found.append(text[start : at + 1].strip())
            start = at + 1
    assert text[start:].strip() == "", "a declaration without an end"
    return found


CDEF = declarations(folded((NATIVE / "ffi.cdef").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def headers() -> str:
    return " ".join(folded(header.read_text(encoding="utf-8")) for header in HEADERS)


@pytest.mark.parametrize("declaration", CDEF)
def test_every_c_name_python_calls_stands_in_a_header(declaration: str, headers: str) -> None:
    """Word for word: cffi's compile checks types it can convert, this checks that nothing was rewritten."""
    assert declaration in headers


def test_a_rewritten_declaration_is_seen(headers: str) -> None:
    """The check itself: another integer type, which C would convert in silence, is not in the headers."""
    true = "kv_result kv_sync(kv_caller *c);"
    assert true in CDEF
    assert true in headers
    assert true.replace("kv_result", "int32_t") not in headers


def test_every_status_has_a_name() -> None:
    """kv_status_name knows each status in ffi.cdef, and answers for any other number, too."""
    statuses = ffi.typeof("kv_status").relements
    names = {ffi.string(lib.kv_status_name(number)) for number in statuses.values()}
    assert len(names) == len(statuses) > 20
    assert ffi.string(lib.kv_status_name(12345))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", TESTS)
@pytest.mark.timeout(TEST_TIMEOUT_S + 60)
def test_c(name: str, flavour: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One C test program: plain, under AddressSanitizer with UBSan, under ThreadSanitizer."""
    program = ROOT / "build" / flavour / name
    assert program.exists(), f"{program.relative_to(ROOT)} is not built: run `make c-tests` first"
    result = subprocess.run(
        [*launcher(flavour), str(program)], capture_output=True, text=True, timeout=TEST_TIMEOUT_S, check=False
    )
    print(result.stdout[-4000:], result.stderr[-4000:])
    assert result.returncode == 0
    assert re.search(r"^[1-9]\d* passed, 0 failed", result.stdout, re.MULTILINE)
    if flavour == "plain" and name in TOLD:
        with capsys.disabled():
            print(f"\n{name}:\n{result.stdout}", end="")


def launcher(flavour: str) -> list[str]:
    """ThreadSanitizer keeps its shadow at fixed addresses, which kernels that scatter mappings far give to others."""
    setarch = shutil.which("setarch")
    return [setarch, platform.machine(), "-R"] if flavour == "tsan" and setarch else []


def test_there_are_c_tests() -> None:
    """A folder that was not found would pass as no tests."""
    assert TESTS
