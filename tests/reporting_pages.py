"""Reading a report as a browser would: its visible text, and everything that it could ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

ASKING = frozenset(
    {"src", "srcset", "href", "xlink:href", "action", "formaction", "poster", "data", "background", "cite", "ping", "manifest"}
)
VOID = frozenset({"meta", "img", "br", "hr", "input", "link"})
RAW = frozenset({"style", "script"})


@dataclass
class Page:
    """What a parser finds in a page."""

    text: str = ""
    document: str = ""
    """The text of the element with the id "document"."""
    tags: set[str] = field(default_factory=set)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    raw: dict[str, str] = field(default_factory=dict)
    unclosed: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.open: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.add(tag)
        self.page.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.add(tag)
        self.page.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1][0] == tag:
            self.open.pop()
        elif tag not in VOID:
            self.page.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        tag = self.open[-1][0] if self.open else ""
        if tag in RAW:
            self.page.raw[tag] = self.page.raw.get(tag, "") + data
        elif any(name == "document" for _, name in self.open):
            self.page.document += data
        else:
            self.page.text += data + " "


def read_page(html: str) -> Page:
    """Parse a report."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    reader.page.unclosed += [tag for tag, _ in reader.open]
    return reader.page


def requests(page: Page) -> list[str]:
    """Whatever in the page would be fetched, or could be followed out of it: empty for a page that is complete."""
    found = []
    for tag, name, value in page.attributes:
        inside = value.startswith(("#", "data:image/"))
        if (name in ASKING and not inside) or (name == "style" and "url" in value) or name.startswith("on"):
            found.append(f"{tag} {name}={value[:60]}")
    found += re.findall(r"url\([^)]*\)|@import[^;]*|@font-face", page.raw.get("style", ""))
    found += re.findall(
        r"fetch\(|XMLHttpRequest|import\(|WebSocket|EventSource|sendBeacon|https?:|new Image|Worker", page.raw.get("script", "")
    )
    found += sorted(page.tags & {"iframe", "object", "embed", "link", "base", "video", "audio", "source", "applet"})
    return found
