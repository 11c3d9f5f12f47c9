"""The registry: every update as objects that never change, and an event log that says what was added, what got which name, why and by whom.

Needs no torch until a delta is applied by somebody else.
"""

from selectune.registry.carrying import Carried
from selectune.registry.checking import Problem, Report
from selectune.registry.events import Event, Head
from selectune.registry.looks import Look
from selectune.registry.registry import Registry
from selectune.registry.signing import Admitted
from selectune.registry.standing import Standing
from selectune.registry.update import Move, Update

__all__ = ["Admitted", "Carried", "Event", "Head", "Look", "Move", "Problem", "Registry", "Report", "Standing", "Update"]
