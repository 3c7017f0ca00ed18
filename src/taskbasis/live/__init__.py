"""Models in memory: state dicts merged without files, live modules edited in place."""

from taskbasis.live.applying import Applied, applied, apply
from taskbasis.live.merging import checkpoint, merge_state_dicts

__all__ = ["Applied", "applied", "apply", "checkpoint", "merge_state_dicts"]
