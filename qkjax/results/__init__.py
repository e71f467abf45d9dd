"""Stores results as netCDF and CSV files, formats tables, and computes confidence intervals."""
