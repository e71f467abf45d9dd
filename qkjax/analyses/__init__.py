"""The analyses, each in its own module or folder. Each analysis takes a checkpoint and returns an xarray.Dataset."""
