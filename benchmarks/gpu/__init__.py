"""A run of all measurements on one accelerator, row by row, for a device that is available for a few minutes."""
