"""Pictures that look the same though their bytes differ: saved again with loss, or in another size.

Two numbers of each picture are compared. The perceptual hash (Zauner 2010, "Implementation and benchmarking of perceptual image hash
functions") has 256 bits: which of the 16 x 16 lowest frequencies of the picture, in grey, lie above their median. It alone calls pictures
of one shape in two colours, or of two times on one clock face, the same; so the colours of the picture at 16 x 16 must agree as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from selectune.records.picture import Picture

SIDE = 16
BITS = SIDE * SIDE
"""Of a perceptual hash."""
MOST_BITS = 48
"""Of 256 that may differ: saving as a JPEG of quality 60 changes no more in 99.5 % of the embedded skills' pictures."""
MOST_COLOUR = 0.03
"""Root of the mean square by which the colours may differ, in 0 to 1: the nearest two different pictures were 0.035 apart."""
BLOCK = 1 << 22
"""Pairs that are compared at once."""

_LOOKS: dict[str, Look] = {}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Look:
    """What a picture looks like, in 800 bytes."""

    bits: NDArray[np.uint64]
    """The perceptual hash, [4]."""
    colours: NDArray[np.uint8]
    """The picture at 16 x 16, [768]."""


def look(picture: Picture) -> Look:
    """What a picture looks like; decoded once for each digest. Raises DataError as `Picture.open` does."""
    found = _LOOKS.get(picture.digest)
    if found is None:
        found = _LOOKS[picture.digest] = seen(picture.open())
    return found


def seen(image: Image.Image) -> Look:
    """What a decoded picture looks like."""
    grey = np.asarray(image.convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(grey, type=2)[:SIDE, :SIDE]
    bits = np.packbits(low > np.median(low)).view(np.uint64)
    colours = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8)
    return Look(bits=bits, colours=colours.reshape(-1))


def alike(left: Sequence[Look], right: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Every pair of indices that looks the same.

    Pictures whose mean brightness differs by more than `MOST_COLOUR` cannot be such a pair, since the root of a mean square is never less
    than the mean; so both sides are sorted by it, and only what lies near is compared, by its bits and then by its colours.
    """
    if not left or not right:
        return
    bits = [np.stack([one.bits for one in side]) for side in (left, right)]
    colours = [np.stack([one.colours for one in side]) for side in (left, right)]
    means = [side.mean(axis=1) / 255 for side in colours]
    order = [np.argsort(side, kind="stable") for side in means]
    ranked = means[1][order[1]]
    step = max(1, BLOCK // len(right))
    for at in range(0, len(left), step):
        rows = order[0][at : at + step]
        first = np.searchsorted(ranked, means[0][rows[0]] - MOST_COLOUR - 1e-9, side="left")
        last = np.searchsorted(ranked, means[0][rows[-1]] + MOST_COLOUR + 1e-9, side="right")
        columns = order[1][first:last]
        i, j = np.nonzero(_distances(bits[0][rows], bits[1][columns]) <= MOST_BITS)
        for a, b in zip(rows[i].tolist(), columns[j].tolist(), strict=True):
            if _apart(colours[0][a], colours[1][b]) <= MOST_COLOUR:
                yield a, b


def apart(one: Look, other: Look) -> tuple[int, float]:
    """How many of the `BITS` differ, and the root of the mean square by which the colours do, in 0 to 1."""
    return int(_distances(one.bits[None], other.bits[None])[0, 0]), _apart(one.colours, other.colours)


def _distances(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint16]:
    total = np.zeros((len(left), len(right)), dtype=np.uint16)
    for word in range(left.shape[1]):
        total += np.bitwise_count(left[:, None, word] ^ right[None, :, word])
    return total


def _apart(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    return float(np.sqrt(np.mean(np.square((left.astype(np.float64) - right) / 255))))
