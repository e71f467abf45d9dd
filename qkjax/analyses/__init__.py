"""The analyses, each in its own module or folder. An analysis takes a checkpoint and returns an xarray.Dataset."""
