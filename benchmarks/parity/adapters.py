"""Adapters as PEFT makes them, and recipes of models with adapters on them.

.venv-mergekit/bin/python benchmarks/parity/adapters.py BASE OUT     run by recipes.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KINDS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "stable": {"r": 3, "use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 1},
        "alpha_pattern": {"q_proj": 3},
    },
    "whole": {"modules_to_save": ["norm", "lm_head"]},
    "biased": {"bias": "all"},
}
"""By name: what sets a LoRA apart from one of rank 4 and alpha 6 on attention and MLP."""

ALONE = """
merge_method: passthrough
models:
  - model: {base}+{plain}
"""
ADAPTED = """
merge_method: task_arithmetic
base_model: {base}
models:
  - {{model: "{base}+{stable}", parameters: {{weight: 0.7}}}}
  - {{model: "{a}+{patterns}", parameters: {{weight: [0.5, -0.5]}}}}
dtype: float32
"""
WHOLE = """
merge_method: linear
models:
  - {{model: "{base}+{whole}", parameters: {{weight: 1}}}}
  - {{model: {b}, parameters: {{weight: 2}}}}
dtype: float32
"""
BASE = """
merge_method: ties
base_model: {base}+{plain}
models:
  - {{model: {a}, parameters: {{weight: 1, density: 0.5}}}}
  - {{model: "{b}+{stable}", parameters: {{weight: 0.5, density: 0.7}}}}
dtype: float32
"""
FRANKEN = """
slices:
  - sources: [{{model: "{a}+{plain}", layer_range: [0, 3]}}]
  - sources: [{{model: "{b}+{patterns}", layer_range: [1, 4]}}]
merge_method: passthrough
dtype: float32
"""
RECIPES: Mapping[str, str] = {
    "an adapter written into its model": ALONE,
    "adapters of rsLoRA and with patterns": ADAPTED,
    "an adapter with modules_to_save": WHOLE,
    "a base with an adapter on it": BASE,
    "frankenmerge of models with adapters": FRANKEN,
}


def make(python: Path, base: str, folder: Path) -> dict[str, str]:
    """Adapters of every kind, by PEFT in its own environment."""
    subprocess.run([str(python), __file__, base, str(folder)], check=True, capture_output=True)
    return {name: str(folder / name) for name in KINDS if (folder / name).exists()}


def main(base: str, folder: str) -> None:
    """Writes adapters of a model, with numbers as training would leave them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for seed, (name, kind) in enumerate(KINDS.items(), start=1):
        model = AutoModelForCausalLM.from_pretrained(base)
        gpt2 = model.config.model_type == "gpt2"
        if gpt2 and name in ("patterns", "whole"):
            continue
        own = ["c_attn", "c_fc"] if gpt2 else ["q_proj", "v_proj", "down_proj"]
        settings = {"r": 4, "lora_alpha": 6, "target_modules": own, "fan_in_fan_out": gpt2, **kind}
        adapted = get_peft_model(model, LoraConfig(**settings))
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    size = 0.1 if "lora_" in key else 0.01
                    parameter.add_(size * torch.randn_like(parameter))
        adapted.save_pretrained(Path(folder) / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
