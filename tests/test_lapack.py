"""The decomposition on CPUs, head by head in float64, against numpy's SVD of the dense matrix."""

import numpy as np
import pytest

from qkjax.interaction.svd.lapack import modes_of_head


@pytest.mark.parametrize("condition", [1, 1e2, 1e3, 1e4, 1e6, 1e9])
def test_even_the_smallest_modes_are_right(condition):
    """s down to 1 / condition^2 of the largest; from a condition of about 1e4 on the Gram matrix would not do."""
    rng = np.random.default_rng(4)
    left, right = (np.linalg.qr(rng.standard_normal((2, n, 8)))[0] for n in (40, 8))
    factors = left * np.geomspace(1, 1 / condition, 8) @ right
    both, s = modes_of_head(factors)
    m = factors[0] @ factors[1].T
    np.testing.assert_allclose(s, np.linalg.svd(m)[1][:8], atol=1e-14)
    np.testing.assert_allclose(both[0] * s @ both[1].T, m, atol=1e-14)
    np.testing.assert_allclose(both.swapaxes(-1, -2) @ both, np.stack([np.eye(8)] * 2), atol=1e-7)
