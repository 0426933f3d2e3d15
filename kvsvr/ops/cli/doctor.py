"""kvsvr doctor: what is wrong with a store or its place, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from kvsvr.ops.cli.common import DAMAGE, DEGRADED, FAILED, directory_argument, json_option, print_json
from kvsvr.ops.doctor import Finding, Verdict, examine

# From the least to the worst: the worst finding decides.
CODES: Final = {Verdict.PASS: 0, Verdict.WARN: DEGRADED, Verdict.FAIL: FAILED, Verdict.DAMAGE: DAMAGE}


@click.command("doctor")
@directory_argument
@json_option
@click.pass_context
def command(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """Examine the store and where it lies: disk, space, limits, lock, catalog, checkpoint.

    Every finding is PASS, WARN, FAIL or DAMAGE, the latter three with a cure. Exit code 0 if all pass, 3 with a WARN,
    1 with a FAIL, 4 with DAMAGE. Writes nothing but a small file to time the disk with, and removes that.
    """
    findings: list[Finding] = []
    for finding in examine(directory):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.verdict:6} {finding.check}: {finding.what}")
            if finding.cure:
                click.echo(f"       cure: {finding.cure}")
    worst = max((finding.verdict for finding in findings), key=list(CODES).index)
    if as_json:
        print_json({"verdict": worst, "findings": [asdict(finding) for finding in findings]})
    ctx.exit(CODES[worst])
