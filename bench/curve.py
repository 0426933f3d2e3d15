"""Quantiles of how long single operations took. No imports: cells and the processes they start both need it."""

from collections.abc import Iterable

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999, "max": 1.0}


def curve_of(nanoseconds: Iterable[int]) -> dict[str, float]:
    """Microseconds at each quantile: so large a share of all was faster."""
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    return {name: ordered[min(last, int(share * len(ordered)))] / 1000 for name, share in QUANTILES.items()}
