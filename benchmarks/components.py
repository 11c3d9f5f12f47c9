"""How long a map takes: of models of 7 and 30 billion weights, and of every architecture that transformers lists.

    python benchmarks/components.py                            # minutes; prints, and writes results/components.json
    python benchmarks/components.py --only models --out ''     # seconds; prints alone

Models are on the meta device, as `selectune map` has them; building one is not counted for the models and is for the architectures, whose
figure is what a user waits for. A model's figure is the median of five, with nothing kept from one to the next; the first, which reads the
tables too, is given beside it. Where the time goes is by cProfile, which makes everything slower, so shares and no seconds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from selectune.components import map_model, slices
from selectune.components.architecture import build_architecture, causal_types, image_text_types
from selectune.components.disk import disk_names
from selectune.errors import SelectuneError

ROUNDS = 5
GOALS = {"models": 1.0, "image_text": 90.0}
"""Seconds: for one model, and for all image-text-to-text architectures together."""


def llava() -> Any:
    """LLaVA-1.5-7B: the default config."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(LlavaConfig())


def qwen2_5_vl() -> Any:
    """Qwen2.5-VL-7B."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    text |= {"vocab_size": 152064, "tie_word_embeddings": False}
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 3584}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False))


def qwen3_moe() -> Any:
    """Qwen3-30B-A3B."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        vocab_size=151936,
        tie_word_embeddings=False,
    )
    return Qwen3MoeForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {"Qwen2.5-VL-7B": qwen2_5_vl, "LLaVA-1.5-7B": llava, "Qwen3-MoE-30B": qwen3_moe}


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def one_model(name: str) -> dict[str, Any]:
    """The times of one model's map and of its names on disk, and the parts of selectune that take most of it."""
    with torch.device("meta"):
        net = MODELS[name]()

    def mapped() -> Any:
        slices._parted.cache_clear()
        slices.region_shape.cache_clear()
        return map_model(net, name)

    first = timed(mapped)
    seconds = [timed(mapped) for _ in range(ROUNDS)]
    found = mapped()
    return {
        "elements": found.elements,
        "parameters": len(found.shapes),
        "components": len(found.components),
        "seconds": statistics.median(seconds),
        "rounds": seconds,
        "first": first,
        "disk_seconds": timed(lambda: disk_names(net, found)),
        "shares": shares(mapped),
    }


def shares(call: Callable[[], Any], shown: int = 6) -> dict[str, float]:
    """By function of selectune: its share of the time, with all that it calls; the widest one, which is the call itself, is left out."""
    profile = cProfile.Profile()
    profile.runcall(call)
    stats: Any = pstats.Stats(profile)
    whole = max(row[3] for row in stats.stats.values())
    rows = {
        f"{Path(file).stem}.{function}": row[3] / whole
        for (file, _, function), row in stats.stats.items()
        if "selectune" in file and "benchmarks" not in file and function != "map_model" and not function.startswith("<")
    }
    return dict(sorted(rows.items(), key=lambda row: -row[1])[:shown])


def architectures(types: Sequence[str]) -> dict[str, Any]:
    """Every type built and mapped, one after the other, as `selectune map arch:TYPE` does it."""
    building: dict[str, float] = {}
    mapping: dict[str, float] = {}
    refused: list[str] = []
    for model_type in types:
        started = time.perf_counter()
        try:
            net = build_architecture(model_type)
        except SelectuneError:
            refused.append(model_type)
            continue
        finally:
            building[model_type] = time.perf_counter() - started
        mapping[model_type] = timed(partial(map_model, net, model_type))
    both = {model_type: seconds + mapping.get(model_type, 0.0) for model_type, seconds in building.items()}
    return {
        "types": len(types),
        "refused": refused,
        "seconds": sum(both.values()),
        "building": sum(building.values()),
        "mapping": sum(mapping.values()),
        "slowest": dict(sorted(both.items(), key=lambda row: -row[1])[:5]),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("models", "image_text", "causal"), default=None)
    default = Path(__file__).parent / "results" / "components.json"
    parser.add_argument("--out", default=str(default), help="where the JSON goes; empty for nowhere")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    parts: dict[str, Callable[[], Any]] = {
        "models": lambda: {name: one_model(name) for name in MODELS},
        "image_text": lambda: architectures(image_text_types()),
        "causal": lambda: architectures(causal_types()),
    }
    result: dict[str, Any] = {}
    for name, measure in parts.items():
        if options.only in (None, name):
            result[name] = measure()
            show(name, result[name])
    result |= {
        "goals": GOALS,
        "cpus": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def show(name: str, found: dict[str, Any]) -> None:
    """A table on the screen."""
    if name != "models":
        refused = len(found["refused"])
        slowest = ", ".join(f"{model_type} {seconds:.1f}" for model_type, seconds in found["slowest"].items())
        times = f"{found['seconds']:.1f} s, {found['mapping']:.1f} s of it mapping"
        print(f"{name}: {found['types']} types in {times}, {refused} refused; slowest: {slowest}")
        return
    print(f"{'model':16}{'parameters':>12}{'components':>12}{'map, s':>10}{'first, s':>10}{'disk, s':>10}")
    for model, row in found.items():
        times = "".join(f"{row[key]:>10.3f}" for key in ("seconds", "first", "disk_seconds"))
        print(f"{model:16}{row['parameters']:>12,}{row['components']:>12,}{times}")
        print("  " + ", ".join(f"{function} {share:.0%}" for function, share in row["shares"].items()))


if __name__ == "__main__":
    main()
