"""Figures as people read them: three significant digits, because more would claim a precision that repetitions do not
have, and the unit that makes the number short."""

_SCALES: dict[str, tuple[tuple[str, float], ...]] = {
    "rate": (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)),
    "us": (("s", 1e6), ("ms", 1e3), ("us", 1.0), ("ns", 1e-3)),
    "ms": (("s", 1e3), ("ms", 1.0), ("us", 1e-3)),
    "s": (("s", 1.0), ("ms", 1e-3)),
    "bytes": (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)),
    "ratio": (("x", 1.0),),
}


def short(rate: float) -> str:
    """A rate, without its unit: `132 k`."""
    return text_of(rate, "rate")


def text_of(value: float, unit: str) -> str:
    """`132 k` of keys/s, `1.3 ms` of us, `31.8 B` of bytes/key; per what is left to a heading. A unit that is not
    known stays as it is."""
    scales = _SCALES.get(_kind(unit), ((unit, 1.0),))
    # What would be rounded up to the next unit belongs to it; what is smaller than all has the smallest; 0 has its own.
    fitting = [scale for scale in scales if (abs(value) >= scale[1] * 0.9995 if value else scale[1] == 1.0)]
    name, size = (fitting or scales[-1:])[0]
    scaled = value / size
    return f"{scaled:,.0f} {name}".rstrip() if abs(scaled) >= 999.5 else f"{scaled:.3g} {name}".rstrip()


def span(low: float, high: float, unit: str = "rate") -> str:
    """`132 to 168 k`: the unit once, where both have the same."""
    low_text, high_text = text_of(low, unit), text_of(high, unit)
    number, _, name = low_text.partition(" ")
    return f"{number if high_text.partition(' ')[2] == name else low_text} to {high_text}"


def _kind(unit: str) -> str:
    """Bytes a second are a rate, bytes a key are bytes."""
    return "rate" if unit.endswith("/s") else "bytes" if unit.partition("/")[0] == "bytes" else unit
