"""A model of ours measured by somebody else's evaluator."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from selectune.errors import InputError
from selectune.evaluation import Measurement
from selectune.evaluation.bridges import measured
from selectune.evaluation.bridges.lmms import Asked, run_lmms_eval
from selectune.models import load, providers
from selectune.pipeline.progress import Progress, bar
from selectune.pipeline.slots import weight_folder
from selectune.pipeline.versions import REGISTRY, save_full
from selectune.pipeline.witnessing import open_registry


def measure_with_lmms_eval(name: str, asked: Asked, progress: Progress, *, registry: str, metrics: Sequence[str] = ()) -> Measurement:
    """lmms-eval's tasks on a folder, a hub id on this disk, or an update of the registry, which is written out as a full checkpoint.

    The measurement has the id of the weights. Raises InputError for a model that is made by a package and lies in no folder, and what
    `run_lmms_eval` and `measured` raise.
    """
    if name in providers():
        then = "Give a folder, or an update of the registry on one."
        raise InputError("is made by a package and lies in no folder that lmms-eval could load", where=f"model {name}", then=then)
    with tempfile.TemporaryDirectory(prefix="selectune-checkpoint-") as place:
        folder = weight_folder(name)
        if folder is not None:
            identity = load(name).id
        else:
            opened = open_registry(registry)
            wanted = name.removeprefix(REGISTRY)
            identity = opened.show(wanted).child
            progress.say(f"Writing {name} as a checkpoint")
            folder = save_full(opened, wanted, Path(place) / "model", progress=progress)
        with bar(progress, "lmms-eval") as advance:
            log = run_lmms_eval(folder.absolute(), asked, say=progress.say, count=advance)
    return measured(log, stage=name, metrics=metrics, model_id=identity)
