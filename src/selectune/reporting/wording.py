"""How numbers and names are written for people; `jinja2` filters and the terminal use the same rules.

==================  ==========================================  ====================
share               percent, one decimal                        0.725 → 72.5 %
points              difference of shares, signed, one decimal   -0.021 → −2.1
perplexity          exp of minus the score, one decimal         -2.7147 → 15.1
probability         four decimals                               0.16961 → 0.1696
correlation         two decimals, signed                        -0.97 → −0.97
count               grouped by thin spaces                      26542080 → 26 542 080
short               three digits and a unit                     26542080 → 26.5 M
rate                scientific, no needless digits              0.0002 → 2e-4
duration            the two largest units                       133 → 2 min 13 s
size                decimal units                               5312000 → 5.3 MB
==================  ==========================================  ====================

A missing number is a dash. The minus is U+2212; spaces inside a number do not break.
"""

from __future__ import annotations

import math
import unicodedata

DASH = "–"
MINUS = "\N{MINUS SIGN}"
GAP = "\N{NARROW NO-BREAK SPACE}"


def number(value: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """`value` with `digits` decimals; a negative zero is a zero."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def share(value: float | None) -> str:
    """0.725 → 72.5 %."""
    return DASH if value is None else f"{number(100 * value)}{GAP}%"


def share_range(low: float | None, high: float | None) -> str:
    """The ends of a share's interval: 63.8–79.3."""
    return DASH if low is None or high is None else f"{number(100 * low)}{DASH}{number(100 * high)}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, signed: −2.1."""
    return DASH if value is None else number(100 * value, signed=True)


def points_range(low: float | None, high: float | None) -> str:
    """The ends of a difference's interval: −4.0 to −0.2."""
    return DASH if low is None or high is None else f"{points(low)} to {points(high)}"


def perplexity(score: float | None) -> str:
    """The perplexity of a score that is minus the mean log likelihood of a token."""
    return DASH if score is None else number(math.exp(min(-score, 700.0)))


def perplexity_range(low: float | None, high: float | None) -> str:
    """The ends of a perplexity's interval; a high score is a low perplexity."""
    return DASH if low is None or high is None else f"{perplexity(high)}{DASH}{perplexity(low)}"


def probability(value: float | None) -> str:
    """0.16961 → 0.1696."""
    return number(value, 4)


def count(value: int | None) -> str:
    """26542080 → 26 542 080."""
    return DASH if value is None else f"{value:,}".replace(",", GAP).replace("-", MINUS)


def short(value: float) -> str:
    """26542080 → 26.5 M."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{GAP}{unit}"
    return f"{value:.0f}"


def size(value: int) -> str:
    """Bytes in decimal units."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.1f}{GAP}{unit}"
    return f"{value}{GAP}B"


def duration(seconds: float) -> str:
    """Seconds as its two largest units."""
    if seconds < 10:
        return f"{seconds:.1f}{GAP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{GAP}s"
    if whole < 3600:
        return f"{whole // 60}{GAP}min {whole % 60:02d}{GAP}s"
    return f"{whole // 3600}{GAP}h {whole % 3600 // 60:02d}{GAP}min"


def rate(value: object) -> str:
    """A learning rate without needless digits: 5e-05 → 5e-5, 0.0002 → 2e-4; anything that is no number is a dash."""
    if not isinstance(value, float | int):
        return DASH
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def identity(value: str, length: int = 12) -> str:
    """The first digits of a long id; a short name stays whole."""
    return value if len(value) <= length + 4 else value[:length]


def plain(text: object) -> str:
    """`text` with every control, formatting and surrogate character made visible as its code, line breaks and tabs kept.

    A right-to-left override would otherwise reorder what stands beside it, and an escape would speak to a terminal. Joiners inside
    emoji and scripts (U+200C, U+200D) stay, as they can hide nothing.
    """
    written = str(text)
    if written.isascii() and written.isprintable():
        return written
    return "".join(_visible(character) for character in written)


def _visible(character: str) -> str:
    if character in "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}":
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}U+{ord(character):04X}\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"
    return character


def words(name: str) -> str:
    """An identifier as words: held_out_forgetting → held out forgetting."""
    return name.replace("_", " ").strip()
