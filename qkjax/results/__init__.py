"""Results as netCDF files, CSV files, tables and confidence intervals."""
