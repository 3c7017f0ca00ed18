"""LoRA adapters out: extracted from full task vectors, added exactly, compressed to a rank."""

from taskbasis.lora.adding import add_adapters
from taskbasis.lora.extracting import extract_lora
from taskbasis.lora.factors import Cutoff
from taskbasis.lora.made import Made, Row, serving_hint

__all__ = ["Cutoff", "Made", "Row", "add_adapters", "extract_lora", "serving_hint"]
