"""HTML from Python, with everything escaped that is not HTML already."""

from html import escape


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str | bool | None) -> Markup:
    """<tag attributes>content</tag>; class_ is class, aria_label aria-label, True a name alone, None and False none."""
    given = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{tag}{given}>{joined(*content)}</{tag}>")


def joined(*content: str) -> Markup:
    return Markup("".join(each if isinstance(each, Markup) else escape(each) for each in content))
