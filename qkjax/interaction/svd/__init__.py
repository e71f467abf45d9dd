"""Methods that compute the decomposition: LAPACK for CPUs, matrix products for accelerators."""
