"""Training of a selection, and of nothing else.

`fit` is a generator that yields one `Step` after another; `train` runs it to the end and gives back what changed as a `Delta`, with the
model as it was before. Neither knows of evaluation, monitor or registry.
"""

from selectune.training.features import FeatureCache
from selectune.training.keeping import Keeping
from selectune.training.loop import fit, train
from selectune.training.results import Session, Step, Training

__all__ = ["FeatureCache", "Keeping", "Session", "Step", "Training", "fit", "train"]
