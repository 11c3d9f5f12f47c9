"""Draws the synthetic pictures: counting, clocks and printed words. Every picture follows from its seed alone."""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 104
FONTS = Path("/usr/share/fonts/truetype/dejavu")
FACES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansCondensed.ttf",
)
INKS = ("black", "navy", "darkred", "darkgreen", "purple", "saddlebrown", "teal", "crimson")
PAPERS = ("white", "ivory", "whitesmoke", "lightyellow", "aliceblue", "mistyrose", "honeydew")
SHAPES = ("circle", "square", "triangle", "star")


def counting(rng: random.Random, count: int) -> Image.Image:
    """`count` like objects, none touching another."""
    picture = Image.new("RGB", (SIZE, SIZE), rng.choice(PAPERS))
    draw = ImageDraw.Draw(picture)
    shape, ink, radius = rng.choice(SHAPES), rng.choice(INKS), rng.randint(7, 12)
    centres: list[tuple[float, float]] = []
    while len(centres) < count:
        x, y = rng.uniform(radius + 2, SIZE - radius - 2), rng.uniform(radius + 2, SIZE - radius - 2)
        if all(math.dist((x, y), other) > 2 * radius + 4 for other in centres):
            centres.append((x, y))
        elif rng.random() < 0.002:
            # A crowded start can leave no room for the last object: begin again rather than draw fewer.
            centres.clear()
    for centre in centres:
        draw.polygon(_outline(shape, centre, radius, rng.uniform(0, 0.6)), fill=ink)
    return picture


def clock(rng: random.Random, hour: int, minute: int) -> Image.Image:
    """An analogue clock face with ticks at the hours."""
    picture = Image.new("RGB", (SIZE, SIZE), rng.choice(PAPERS))
    draw = ImageDraw.Draw(picture)
    ink, radius = rng.choice(INKS), rng.uniform(39, 48)
    x, y = SIZE / 2 + rng.uniform(-3, 3), SIZE / 2 + rng.uniform(-3, 3)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=rng.randint(2, 4), fill="white")
    for tick in range(12):
        draw.line(
            [_at(x, y, radius * 0.95, tick / 12), _at(x, y, radius * (0.78 if tick % 3 == 0 else 0.86), tick / 12)], fill=ink, width=2
        )
    draw.line([(x, y), _at(x, y, radius * 0.5, (hour % 12 + minute / 60) / 12)], fill=ink, width=rng.randint(6, 7))
    draw.line([(x, y), _at(x, y, radius * 0.8, minute / 60)], fill=rng.choice((ink, "crimson")), width=rng.randint(2, 3))
    return picture


def word(rng: random.Random, text: str) -> Image.Image:
    """One word, printed across the picture."""
    picture = Image.new("RGB", (SIZE, SIZE), rng.choice(PAPERS))
    draw = ImageDraw.Draw(picture)
    face = FONTS / rng.choice(FACES)
    size = 40
    font = ImageFont.truetype(face, size)
    while draw.textlength(text, font=font) > SIZE - 8:
        size -= 1
        font = ImageFont.truetype(face, size)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = rng.uniform(2, max(3.0, SIZE - 2 - (right - left)))
    y = rng.uniform(2, SIZE - 2 - (bottom - top))
    draw.text((x - left, y - top), text, font=font, fill=rng.choice(INKS))
    return picture.rotate(rng.uniform(-4, 4), fillcolor=picture.getpixel((0, 0)), resample=Image.Resampling.BICUBIC)


def on_paper(rng: random.Random, cutout: Image.Image, share: tuple[float, float] = (0.62, 0.92)) -> Image.Image:
    """A cut-out picture, scaled, turned a little and laid on plain paper."""
    paper = Image.new("RGB", (SIZE, SIZE), rng.choice(PAPERS))
    side = SIZE * rng.uniform(*share)
    scale = side / max(cutout.size)
    small = cutout.convert("RGBA").resize(
        (max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))), Image.Resampling.LANCZOS
    )
    small = small.rotate(rng.uniform(-8, 8), expand=True, resample=Image.Resampling.BICUBIC)
    at = (rng.randint(0, max(0, SIZE - small.width)), rng.randint(0, max(0, SIZE - small.height)))
    paper.paste(small, at, small)
    return paper.filter(ImageFilter.GaussianBlur(0.6)) if rng.random() < 0.2 else paper


def emoji(text: str) -> Image.Image | None:
    """The font's coloured picture of `text`, cut out; None where the font has none."""
    font = ImageFont.truetype("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", 109)
    picture = Image.new("RGBA", (150, 150), (255, 255, 255, 0))
    ImageDraw.Draw(picture).text((7, 7), text, font=font, embedded_color=True)
    box = picture.getbbox()
    return picture.crop(box) if box else None


def _at(x: float, y: float, radius: float, turn: float) -> tuple[float, float]:
    """The point at `turn` of a full circle, clockwise from twelve."""
    return x + radius * math.sin(2 * math.pi * turn), y - radius * math.cos(2 * math.pi * turn)


def _outline(shape: str, centre: tuple[float, float], radius: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape around `centre`."""
    corners = {"circle": 24, "square": 4, "triangle": 3, "star": 10}[shape]
    return [_at(*centre, radius * (0.45 if shape == "star" and k % 2 else 1.0), turn + k / corners) for k in range(corners)]
