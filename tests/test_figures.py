"""Figures load little, and say what they show in plain words."""

import subprocess
import sys

import pytest

from qkjax import figures


def test_sheets_need_neither_jax_nor_scipy():
    """Processes that draw sheets start in half a second because of it."""
    code = (
        "import sys, qkjax.figures.sheets, qkjax.figures.style;"
        "print([name for name in ('jax', 'flax', 'scipy', 'xarray', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_name_of_the_package_can_be_imported():
    for name in figures.__all__:
        assert getattr(figures, name) is not None
    assert callable(figures.overlay)
    with pytest.raises(AttributeError, match="no attribute 'overlays'"):
        figures.overlays  # noqa: B018
