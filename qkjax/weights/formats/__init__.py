"""Reads arrays from npz, tensorstore, safetensors, PyTorch and ONNX files."""
