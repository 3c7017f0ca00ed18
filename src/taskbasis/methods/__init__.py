"""Ways to combine task vectors: one small file each, in a folder of its family.

A method knows no files, devices, workers or architectures. It sees the deltas of T vectors over
a stretch of one tensor (a :class:`Chunk`), and returns the merged delta. Methods are made by
name, ``method("ties", density=0.3)``, or imported from their own files.
"""

from taskbasis.methods.base import (
    Chunk,
    Factors,
    Method,
    Moment,
    Selecting,
    per_vector,
    summed,
)
from taskbasis.methods.registry import find_method, method, parse_method, registered

__all__ = [
    "Chunk",
    "Factors",
    "Method",
    "Moment",
    "Selecting",
    "find_method",
    "method",
    "parse_method",
    "per_vector",
    "registered",
    "summed",
]
