"""Record what mergekit makes of two tiny Llamas, for tests/test_merging.py to compare with.

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install mergekit==0.1.5
    /tmp/mergekit/bin/python scripts/record_mergekit.py tests/recorded/mergekit.json

Runs in an environment of its own, as mergekit needs other versions than selectune. The checkpoints are bf16; mergekit is told to compute
in fp32 and to round once, as selectune does. Only two of the tensors are kept.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

KEPT = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight")
# mergekit rescales what dare leaves to the old l1 norm, not by 1 / (1 - p) as the paper does: recorded without, to compare the rest.
METHODS: dict[str, dict[str, object]] = {
    "linear": {"merge_method": "linear", "weights": (0.5, 0.5)},
    "task_arithmetic": {"merge_method": "task_arithmetic", "weights": (0.7, 0.4)},
    "ties": {"merge_method": "ties", "weights": (1.0, 1.0), "density": 0.3},
    "ties_weighted": {"merge_method": "ties", "weights": (1.0, 0.5), "density": 0.5},
    "dare": {"merge_method": "dare_linear", "weights": (0.5, 0.5), "density": 0.4, "rescale": False},
    "dare_keeping_all": {"merge_method": "dare_linear", "weights": (0.7, 0.4), "density": 1.0},
}


def filled(seed: int) -> LlamaForCausalLM:
    """A Llama whose weights are numpy's normal numbers of a seed; 0 is the base, the others are that with some noise."""
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=32
    )
    net = LlamaForCausalLM(config)
    base, noise = np.random.default_rng(0), np.random.default_rng(seed)
    for tensor in net.state_dict().values():
        values = base.normal(size=tuple(tensor.shape))
        if seed:
            values = values + 0.1 * noise.normal(size=tuple(tensor.shape))
        tensor.copy_(torch.from_numpy(values))
    return net.to(torch.bfloat16)


def merged(folder: Path, settings: dict[str, object]) -> dict[str, torch.Tensor]:
    """What mergekit makes of the three in `folder`."""
    settings = dict(settings)
    weights = settings.pop("weights")
    method = settings.pop("merge_method")
    shared = {"parameters": {"rescale": settings.pop("rescale")}} if "rescale" in settings else {}
    models: list[dict[str, object]] = [
        {"model": str(folder / name), "parameters": {"weight": weight, **settings}}
        for name, weight in zip("ab", weights, strict=True)  # type: ignore[arg-type]
    ]
    config: dict[str, object] = {"merge_method": method, "models": models, "dtype": "float32", "out_dtype": "bfloat16", **shared}
    if method != "linear":
        config["base_model"] = str(folder / "base")
    out = folder / "out"
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config))),
        str(out),
        MergeOptions(random_seed=0, copy_tokenizer=False, lazy_unpickle=False),
    )
    tensors: dict[str, torch.Tensor] = {}
    for path in out.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    return tensors


def main(target: Path) -> None:
    """Make the checkpoints, merge them in every way, and write what came out."""
    found: dict[str, object] = {"mergekit": version("mergekit"), "torch": version("torch"), "methods": METHODS, "tensors": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        nets = {"base": filled(0), "a": filled(1), "b": filled(2)}
        for name, net in nets.items():
            net.save_pretrained(folder / name)
        rows = {name: {one: net.state_dict()[one] for one in KEPT} for name, net in nets.items()}
        rows |= {method: merged(folder, settings) for method, settings in METHODS.items()}
    found["tensors"] = {
        name: {one: base64.b64encode(tensors[one].contiguous().view(torch.int16).numpy().tobytes()).decode() for one in KEPT}
        for name, tensors in rows.items()
    }
    found["shapes"] = {one: list(rows["base"][one].shape) for one in KEPT}
    target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
