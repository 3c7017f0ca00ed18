"""Models in memory: state dicts merged without files, live modules edited in place."""

from taskbasis.live.applying import Applied, applied, apply
from taskbasis.live.merging import checkpoint, merge_state_dicts
from taskbasis.live.resident import Resident

__all__ = ["Applied", "Resident", "applied", "apply", "checkpoint", "merge_state_dicts"]
