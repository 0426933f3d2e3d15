"""HTML and SVG made by hand: elements whose text is escaped, because names and errors come from files and peers."""

from html import escape


class Markup(str):
    """Markup already; any other text is escaped where it is put in."""

    __slots__ = ()


def tag(element: str, *children: str, **attributes: str | float | None) -> Markup:
    """`tag("p", "a < b", class_="note")`. An attribute that is None is left out; `_` in its name is written as `-`."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{element}{written}>{join(*children)}</{element}>")


def join(*children: str) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
