"""taskbasis plan"""

from taskbasis.cli.recipes import plan

__all__ = ["plan"]
