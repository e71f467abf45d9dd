"""Effects of editing modes, measured on a set of images."""
