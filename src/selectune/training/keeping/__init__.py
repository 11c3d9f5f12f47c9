"""What holds old skills while a new one is taught: distillation, pulls back to the start, anchors; replays are a matter of the schedule.

Each is a part of a recipe's `keep` and a term of its own, so that any of them may stand beside any other and under any selection.
"""

from selectune.training.keeping.given import Keeping
from selectune.training.keeping.keeper import Keeper, Terms
from selectune.training.keeping.replays import replays

__all__ = ["Keeper", "Keeping", "Terms", "replays"]
