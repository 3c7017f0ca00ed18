"""How files of weights end."""

from __future__ import annotations

SAFETENSORS = ".safetensors"
TORCH = (".bin", ".pt", ".pth")
WEIGHT_SUFFIXES = (
    *(SAFETENSORS, *TORCH, ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".npz"),
    *(".ot", ".tflite"),
)
INDEX_SUFFIX = ".index.json"
