"""Results as files and tables: netCDF, CSV, rows, confidence intervals."""
