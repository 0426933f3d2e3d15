"""A command's answer, without a process of its own."""

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from kvsvr.ops.cli.group import commands

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs `kvsvr` with these arguments; a traceback is an error of the test."""

    def run(*arguments: object, input: bytes | None = None) -> Result:
        return CliRunner().invoke(commands, [str(one) for one in arguments], input=input, catch_exceptions=False)

    return run
