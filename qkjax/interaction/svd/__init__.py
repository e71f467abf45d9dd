"""Methods to compute the modes: LAPACK for CPUs, and matrix products for accelerators."""
