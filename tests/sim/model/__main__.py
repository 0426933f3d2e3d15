"""python -m tests.sim.model [--n 3] [--seeds A:B] [--mutate NAME] [--stop] [-v]

Runs seeds, prints what was violated, and ends with 1 if anything was. A seed replays its run exactly.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tests.sim.model.mutations import MUTATIONS
from tests.sim.model.simulate import Simulation, run


def show(sim: Simulation) -> None:
    for entry in sorted(sim.history, key=lambda e: (e.op.shard, e.op.keys, e.call)):
        op = entry.op
        ret = -1 if entry.ret is None else entry.ret
        what = f"shard {op.shard} {op.keys} {op.kind} {op.args} ttl {op.ttl} -> {entry.result}"
        print(f"  {entry.call:8.2f} {ret:8.2f} {what}  ({op.lane}/{op.req})")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.model")
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--seeds", default="0:100")
    parser.add_argument("--mutate", default="", choices=["", *MUTATIONS])
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    parser.add_argument("-v", action="store_true", help="print the history of violating seeds")
    args = parser.parse_args()
    low, high = map(int, args.seeds.split(":"))
    mutate = frozenset([args.mutate]) - {""}
    total: Counter[str] = Counter()
    bad: list[int] = []
    seed = low
    for seed in range(low, high):
        sim = run(seed, args.n, mutate)
        total.update(sim.stats)
        if not sim.violations:
            continue
        bad.append(seed)
        if not args.mutate or args.v:
            print("seed", seed, sim.violations, flush=True)
        if args.v:
            show(sim)
        if args.stop:
            break
    print(f"n={args.n} mutate={args.mutate or '-'} seeds={low}:{seed + 1} violations={len(bad)} first={bad[:8]}")
    if not args.mutate:
        print(dict(sorted(total.items())))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
