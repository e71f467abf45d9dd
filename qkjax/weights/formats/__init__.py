"""Files and folders to arrays: npz, tensorstore, safetensors, PyTorch's own files, ONNX."""
