"""HTML from plain values: text is escaped unless it is Markup, which only `tag` and a few constants make."""

import html
from collections.abc import Iterable

VOID = ("meta", "img", "br", "wbr")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Iterable[str]


def tag(name: str, /, *children: Child, **attributes: str | bool | None) -> Markup:
    """<name attributes>children</name>. `class_` is class, `aria_label` is aria-label; False and None are left out."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        word = key.rstrip("_").replace("_", "-")
        parts.append(word if value is True else f'{word}="{html.escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Everything one after the other, escaped where it is plain text."""
    return Markup("".join(_flat(child) for child in children))


def _flat(child: Child) -> str:
    if isinstance(child, Markup):
        return str(child)
    return html.escape(child) if isinstance(child, str) else join(child)
