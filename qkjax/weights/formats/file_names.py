"""Names of files with parameters of torch models. This module imports nothing, so that `qkjax models` is fast."""

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FILES = ("model.safetensors", INDEXES[0], "pytorch_model.bin", INDEXES[1], *OPEN_CLIP)
PICKLED = (".bin", ".pt", ".pth", ".tar")  # suffixes of PyTorch files
