"""Readers of files and folders that return arrays: npz, tensorstore, safetensors, PyTorch files, ONNX."""
