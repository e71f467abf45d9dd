"""Names of the files with the parameters of torch models, in a module that imports nothing: `qkjax models` is quick."""

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FILES = ("model.safetensors", INDEXES[0], "pytorch_model.bin", INDEXES[1], *OPEN_CLIP)
PICKLED = (".bin", ".pt", ".pth", ".tar")  # suffixes of PyTorch files
