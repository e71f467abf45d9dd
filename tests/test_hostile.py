"""Files that are not what they should be: one clear line, never a traceback, never a hang."""

import io
import json
import zipfile

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qkjax
from conftest import DATA
from qkjax.vit.config import SETTINGS
from qkjax.weights.load import CONFIG_KEY

QUERY = "Transformer/encoderblock_2/MultiHeadDotProductAttention_0/query/kernel"


def arrays(name: str = "c") -> dict[str, np.ndarray]:
    return dict(flatten_dict(qkjax.load(DATA / f"{name}.npz").params, sep="/"))


def refusal(path) -> str:
    """The line that a user would see; it must be one line and name the file."""
    with pytest.raises(qkjax.QkjaxError) as caught:
        qkjax.load(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line or "catalogue" in line
    return line


@pytest.fixture
def saved(tmp_path):
    def save(**changes) -> str:
        tree = {k: v for k, v in (arrays() | changes).items() if v is not None}
        np.savez(tmp_path / "x.npz", **tree)
        return str(tmp_path / "x.npz")

    return save


def test_missing_file(tmp_path):
    assert "no file" in refusal(tmp_path / "absent.npz")


def test_empty_folder(tmp_path):
    assert "holds no checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_truncated(tmp_path, keep):
    data = (DATA / "c.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[: int(len(data) * keep)])
    assert "truncated" in refusal(tmp_path / "x.npz")


def test_text_called_npz(tmp_path):
    (tmp_path / "x.npz").write_text("<html>404 Not Found</html>")
    assert "not an npz file: it begins with b'<htm'" in refusal(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_text("")
    assert "not an npz file" in refusal(tmp_path / "x.npz")


def test_missing_key_names_the_nearest(saved):
    line = refusal(saved(**{QUERY: None, QUERY.replace("query", "qeury"): arrays()[QUERY]}))
    assert f"{QUERY!r} is missing" in line
    assert f"nearest: {QUERY.replace('query', 'qeury')!r}" in line


def test_unexpected_key(saved):
    assert "'head/gamma' has no place" in refusal(saved(**{"head/gamma": np.ones(3, np.float32)}))


def test_missing_block(saved):
    line = refusal(saved(**{k: None for k in arrays() if "encoderblock_1/" in k}))
    assert "'Transformer/encoderblock_1/...' are missing" in line


def test_wrong_shapes(saved):
    assert f"{QUERY!r} has shape (64, 2, 32), wanted (64, 4, 16)" in refusal(
        saved(**{QUERY: arrays()[QUERY].reshape(64, 2, 32)})
    )
    assert "wanted 4 axes" in refusal(saved(**{"embedding/kernel": np.ones((3, 3, 3), np.float32)}))
    assert "NaFlex" in refusal(saved(**{"embedding/kernel": np.ones((192, 64), np.float32)}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(saved, value):
    broken = arrays()[QUERY].copy()
    broken[3, 1, 2] = value
    assert f"{QUERY!r} holds NaN or infinite" in refusal(saved(**{QUERY: broken}))


def test_integers_are_no_weights(saved):
    assert "is of type int64" in refusal(saved(**{QUERY: np.ones((64, 4, 16), np.int64)}))


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "x.npz", **(arrays() | {QUERY: np.array([Bomb()], dtype=object)}))
    assert "never unpickled" in refusal(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()


def test_members_that_are_not_needed_are_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"params/{k}": v for k, v in arrays().items()}, opt=np.array([{}], dtype=object))
    assert qkjax.load(tmp_path / "x.npz").config.depth == 4


@pytest.mark.parametrize("key", ["conv_root/kernel", "block1/unit1/conv1/kernel"])
def test_hybrid_is_refused_by_name(saved, key):
    line = refusal(saved(**{key: np.ones((7, 7, 3, 64), np.float32)}))
    assert "hybrid ResNet-ViT" in line
    assert key in line


def test_two_towers(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"params/img/{k}": v for k, v in arrays().items()}, **{"params/txt/t": np.ones(1)})
    assert "x.npz:img" in refusal(tmp_path / "x.npz")
    with pytest.raises(qkjax.QkjaxError, match=r"no sub-model 'image'; at its top are: img, txt"):
        qkjax.load(f"{tmp_path}/x.npz:image")


def _with_member(path, key: str, header: dict, data: bytes, compression=zipfile.ZIP_DEFLATED) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, value in arrays().items():
            if name != key:
                with file.open(f"{name}.npy", "w") as member:
                    np.save(member, value)
        file.writestr(f"{key}.npy", head.getvalue() + data)


def test_zip_bomb(tmp_path):
    """400 MB of zeros in 400 kB: its shape is no ViT's, so they are never inflated."""
    import tracemalloc

    header = {"descr": "<f4", "fortran_order": False, "shape": (100_000, 1000)}
    _with_member(tmp_path / "x.npz", QUERY, header, bytes(400_000_000))
    assert (tmp_path / "x.npz").stat().st_size < 2_000_000
    tracemalloc.start()
    line = refusal(tmp_path / "x.npz")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert "has shape (100000, 1000)" in line


def test_header_that_promises_more_than_there_is(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (64, 2**60, 16)}
    _with_member(tmp_path / "x.npz", QUERY, header, bytes(64))
    assert "64 bytes of data where shape (64, 1152921504606846976, 16) needs" in refusal(tmp_path / "x.npz")


def test_consistent_but_too_large_for_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert "this machine has" in refusal(DATA / "c.npz")


def test_stored_configuration_is_checked(saved):
    assert "not a configuration in JSON" in refusal(saved(**{CONFIG_KEY: np.array("{")}))
    assert "not a configuration in JSON" in refusal(saved(**{CONFIG_KEY: np.array("[1]")}))
    assert "not a short text" in refusal(saved(**{CONFIG_KEY: np.ones(3)}))
    for broken in ({"pool": "sum"}, {"grid": [0, 9]}, {"grid": "ab"}, {"norm_eps": -1.0}, {"gelu": []}):
        assert f"{next(iter(broken))} is " in refusal(saved(**{CONFIG_KEY: np.array(json.dumps(broken))}))


def test_settings_are_checked():
    with pytest.raises(qkjax.QkjaxError, match=r"no setting 'gird' .nearest: 'grid'"):
        qkjax.load(DATA / "c.npz", gird=(4, 4))
    with pytest.raises(qkjax.QkjaxError, match="pool is 'max', wanted one of tok, gap"):
        qkjax.load(DATA / "c.npz", pool="max")
    with pytest.raises(qkjax.QkjaxError, match="parameter 'cls' is missing"):
        qkjax.load(DATA / "b.npz", pool="tok")


def test_name_not_in_the_catalogue():
    assert "nearest: 'dinov2-vits14-focus'" in refusal("dinov2-vits14")


GOOD = (DATA / "c.npz").read_bytes()
GOOD_ARRAYS = arrays()
mutation = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, len(GOOD) - 1), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, len(GOOD) - 1), st.integers(1, 4096)),
    st.tuples(st.just("zero"), st.integers(0, len(GOOD) - 1), st.integers(1, 4096)),
    st.tuples(st.just("swap"), st.integers(0, len(GOOD) - 1), st.integers(1, 4096)),
    # The directory at the end holds names, sizes and offsets: most of what can go wrong.
    st.tuples(st.just("flip"), st.integers(len(GOOD) - 12_000, len(GOOD) - 1), st.integers(1, 255)),
)


@settings(max_examples=150, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=st.lists(mutation, min_size=1, max_size=3))
def test_mutated_file_is_refused_or_right(tmp_path, mutations):
    """Either one clear line, or exactly the parameters of the undamaged file."""
    data = bytearray(GOOD)
    for kind, at, amount in mutations:
        if kind == "flip":
            data[at % len(data)] ^= amount
        elif kind == "cut":
            del data[at : at + amount]
        elif kind == "zero":
            data[at : at + amount] = bytes(len(data[at : at + amount]))
        else:
            data[at : at + amount] = data[at : at + amount][::-1]
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    try:
        loaded = flatten_dict(qkjax.load(path).params, sep="/")
    except qkjax.QkjaxError as error:
        assert "\n" not in str(error)
    else:
        assert loaded.keys() == GOOD_ARRAYS.keys()
        for name, value in loaded.items():
            np.testing.assert_array_equal(value, GOOD_ARRAYS[name])


CONFIG_VALUES = st.one_of(
    st.sampled_from(["gap", "map", "none", "exact", "bicubic", [4, 4], [2, 8], 1e-5]),
    st.none(),
    st.integers(-5, 10**6),
    st.floats(),
    st.text(max_size=5),
    st.booleans(),
    st.lists(st.integers(-2, 9), max_size=3),
)


@settings(max_examples=80, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.dictionaries(st.sampled_from(list(SETTINGS)), CONFIG_VALUES, max_size=3))
def test_any_stored_configuration_is_refused_or_fits(tmp_path, config):
    np.savez(tmp_path / "x.npz", **GOOD_ARRAYS, **{CONFIG_KEY: np.array(json.dumps(config))})
    try:
        checkpoint = qkjax.load(tmp_path / "x.npz")
    except qkjax.QkjaxError as error:
        assert "\n" not in str(error)
    else:
        images = np.zeros((1, 16, 16, 3), np.float32)
        output, _ = qkjax.forward(qkjax.ViT(checkpoint.config), checkpoint.params, images)
        assert np.isfinite(output).all()
