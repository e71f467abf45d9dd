"""What all tests share: strict JAX, the golden files, the real model, real photographs."""

import getpass
import os
import tempfile
from pathlib import Path

# Most of the time goes into compiling the same programs, in every worker, in every run, and in the processes and
# notebooks that tests start, which see the environment.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"qkjax-tests-{getpass.getuser()}")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU, if there is one

import jax
import numpy as np
import pytest
from filelock import FileLock
from passed import Passed

import qkjax

jax.config.update("jax_numpy_rank_promotion", "raise")  # a missing axis is a bug, not a broadcast

DATA = Path(__file__).parent / "data"
DEFAULT = "dinov2-vits14-focus"
NEEDS = "needs the parity extra: pip install -e '.[parity]'"
UNCACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
"""For processes that are killed: half a program that one was writing would be an error in every later test."""


def pytest_configure(config):
    """Many tests read bare files; those of loading assert what is assumed of them."""
    config.addinivalue_line("filterwarnings", "ignore::qkjax.errors.AssumptionWarning")
    if path := os.environ.get("QKJAX_PASSED"):
        config.pluginmanager.register(Passed(Path(path)))


def pytest_collection_modifyitems(items):
    """Tests of several processes and of all examples take minutes: CI runs them, and whoever asks for them."""
    if not os.environ.get("QKJAX_ALL_TESTS"):
        skip = pytest.mark.skip(reason="takes long: set QKJAX_ALL_TESTS=1 to run it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason=NEEDS)


@pytest.fixture
def transformers(torch):
    return pytest.importorskip("transformers", reason=NEEDS)


@pytest.fixture
def timm(torch):
    return pytest.importorskip("timm", reason=NEEDS)


def moved(model):
    """The torch model with every parameter moved away from its initial value: biases and norms then matter."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def assert_close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.shape(ours) == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def assert_agrees(checkpoint, model, pixels=(28, 28)):
    """The tokens after each block and the output are those of a timm model."""
    import torch

    images = torch.randn(2, 3, *pixels, generator=torch.Generator().manual_seed(1))
    tokens = []
    hooks = [block.register_forward_hook(lambda _, __, out: tokens.append(out)) for block in model.blocks]
    output = model(images)
    for hook in hooks:
        hook.remove()
    ours, captured = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1), ("residual",))
    for layer, token in enumerate(tokens[:-1]):
        assert_close(captured["residual"][layer + 1], token)
    assert_close(ours, output)


@pytest.fixture(scope="session")
def default():
    """The embedded default with its real weights; fetched when it is not on disk."""
    try:
        with FileLock(Path(tempfile.gettempdir()) / "qkjax-tests.lock"):  # one worker fetches, the others wait
            return qkjax.load(DEFAULT)
    except qkjax.QkjaxError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the default model is not on disk and cannot be fetched: {error}")


@pytest.fixture(scope="session")
def default_modes(default):
    return qkjax.decompose(default)


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """A photograph of a cat, (1, 224, 224, 3), normalised as DINOv2 wants it."""
    from skimage import data, transform

    image = transform.resize(data.chelsea()[:300, 60:360], (224, 224), anti_aliasing=True)
    mean, std = (np.reshape(x, (1, 1, 3)) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((image - mean) / std).astype(np.float32)[None]


@pytest.fixture
def kernels():
    """Random kernels (layers, embed, heads, head_dim) of a small model."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((3, 48, 4, 12)).astype(np.float32) for _ in range(2))


def dense_svd(query: np.ndarray, key: np.ndarray):
    """The oracle: float64 dense SVD of every head's M. (L, H, D, D), (L, H, D), (L, H, D, D)."""
    m = np.einsum("ldhk,lehk->lhde", query.astype(np.float64), key.astype(np.float64))
    u, s, vt = np.linalg.svd(m)
    return u, s, np.swapaxes(vt, -1, -2)
