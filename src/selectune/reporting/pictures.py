"""Small pictures for the report."""

from __future__ import annotations

import base64
import io

from PIL import Image


def thumbnail_url(picture: Image.Image, *, side: int = 160, quality: int = 82) -> str:
    """A data URL of `picture` scaled so that its longer side is at most `side` pixels; never enlarged.

    PNG where it is the smaller one (drawings), JPEG otherwise. A transparent picture is laid on white, as the models see it.
    """
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if small.mode in ("RGBA", "LA", "PA") or "transparency" in small.info:
        ground = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(ground, small.convert("RGBA"))
    small = small.convert("RGB")
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": quality, "optimize": True})):
        buffer = io.BytesIO()
        small.save(buffer, format=kind, **options)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"
