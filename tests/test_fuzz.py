"""The kept corpus of the fuzz targets, replayed without clang. `make fuzz` goes on from there, where there is clang."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "native" / "fuzz" / "corpus"
FLAVOURS = ("plain", "asan")  # One thread has no races to find.
TARGETS = sorted(source.stem.removeprefix("fuzz_") for source in (ROOT / "native" / "fuzz").glob("fuzz_*.c"))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_found_stays_mended(target: str, flavour: str) -> None:
    """No input of the corpus breaks a promise, or makes a sanitizer speak."""
    program = ROOT / "build" / flavour / f"replay_{target}"
    assert program.exists(), f"{program.relative_to(ROOT)} is not built: run `make c-tests` first"
    result = subprocess.run(
        [str(program), str(CORPUS / target)], capture_output=True, text=True, check=False, timeout=300
    )
    print(result.stdout[-4000:], result.stderr[-4000:])
    assert result.returncode == 0
    assert result.stdout == f"{len(list((CORPUS / target).iterdir()))} passed, 0 failed\n"


def test_there_are_targets() -> None:
    """A folder that was not found would pass as no targets; and none goes without a corpus."""
    assert TARGETS
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
