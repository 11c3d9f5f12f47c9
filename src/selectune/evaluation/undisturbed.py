"""Measuring must not change what is measured: a training goes on after an evaluation exactly as it would have without."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def undisturbed(net: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients, no autocast, greedy generation; on leaving, everything is as it was.

    Kept: each module's own training mode, each parameter's `requires_grad`, the generation configuration, and the random states of Python,
    numpy and torch on every device. A repetition penalty and the like of a model's generation configuration do not act inside: greedy is
    greedy.
    """
    from transformers import GenerationConfig

    modes = [(module, module.training) for module in net.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    settings = net.generation_config
    python, arrays, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    kept: Any = settings or GenerationConfig()  # type: ignore[no-untyped-call, unused-ignore]
    greedy: Any = GenerationConfig  # its constructor has no annotations
    tokens = {name: getattr(kept, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")}
    net.generation_config = greedy(**tokens, do_sample=False, num_beams=1)
    net.eval()  # type: ignore[no-untyped-call, unused-ignore]
    # No gradient is taken, yet every weight asks for one, for two reasons. A matrix product takes another kernel, with other last bits, for
    # a weight that does not ask, so the same weights would measure differently before and after a selection was made. And the other kernel
    # is a trap: for the head at the last position (a strided slice of three dimensions) it copies the head once for each row of the batch,
    # which made a prefill of a 135 M model on a CPU 4.5 times slower.
    for parameter, _ in wanted:
        parameter.requires_grad = parameter.is_floating_point()
    try:
        with torch.no_grad(), torch.autocast(device_type=next(net.parameters()).device.type, enabled=False):
            yield
    finally:
        net.generation_config = settings
        for module, mode in modes:
            module.training = mode
        for parameter, value in wanted:
            parameter.requires_grad = value
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)
