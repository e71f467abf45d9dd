"""Files that are not what they should be: one clear line, never a traceback, never a hang."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qkjax
from conftest import DATA
from qkjax.vit.config import SETTINGS
from qkjax.vit.model import forward
from qkjax.weights.checkpoint import CONFIG_KEY
from qkjax.weights.families.architecture import expected_shapes

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
    assert "does not exist: check the path" in refusal(tmp_path / "absent.npz")


def test_empty_folder(tmp_path):
    assert "contains nothing; expected model.safetensors" in refusal(tmp_path)


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
    assert "'head/gamma' is not part of this ViT" in refusal(saved(**{"head/gamma": np.ones(3, np.float32)}))


def test_missing_block(saved):
    line = refusal(saved(**{k: None for k in arrays() if "encoderblock_1/" in k}))
    assert "'Transformer/encoderblock_1/...' are missing" in line


def test_wrong_shapes(saved):
    assert f"{QUERY!r} has shape (64, 2, 32), expected (64, 4, 16)" in refusal(
        saved(**{QUERY: arrays()[QUERY].reshape(64, 2, 32)})
    )
    assert "expected 4 axes" in refusal(saved(**{"embedding/kernel": np.ones((3, 3, 3), np.float32)}))
    assert "NaFlex" in refusal(saved(**{"embedding/kernel": np.ones((192, 64), np.float32)}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(saved, value):
    broken = arrays()[QUERY].copy()
    broken[3, 1, 2] = value
    assert f"{QUERY!r} has NaN or infinite" in refusal(saved(**{QUERY: broken}))


def test_integers_are_no_weights(saved):
    assert "has dtype int64" in refusal(saved(**{QUERY: np.ones((64, 4, 16), np.int64)}))


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "x.npz", **(arrays() | {QUERY: np.array([Bomb()], dtype=object)}))
    assert "which are not read" in refusal(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()


def test_members_that_are_not_needed_are_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"params/{k}": v for k, v in arrays().items()}, opt=np.array([{}], dtype=object))
    assert qkjax.load(tmp_path / "x.npz").config.depth == 4


@pytest.mark.parametrize("key", ["conv_root/kernel", "block1/unit1/conv1/kernel"])
def test_hybrid_is_refused_by_name(saved, key):
    line = refusal(saved(**{key: np.ones((7, 7, 3, 64), np.float32)}))
    assert "hybrid of ResNet and ViT" in line
    assert key in line


def test_two_towers(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"params/img/{k}": v for k, v in arrays().items()}, **{"params/txt/t": np.ones(1)})
    assert "x.npz:img" in refusal(tmp_path / "x.npz")
    with pytest.raises(qkjax.QkjaxError, match=r"no sub-model 'image'; it has img, txt"):
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
    assert f"64 bytes of data, expected {2**72} for shape (64, {2**60}, 16)" in refusal(tmp_path / "x.npz")


def test_consistent_but_too_large_for_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert "this machine has" in refusal(DATA / "c.npz")


def test_stored_configuration_is_checked(saved):
    assert "not a configuration in JSON" in refusal(saved(**{CONFIG_KEY: np.array("{")}))
    assert "not a configuration in JSON" in refusal(saved(**{CONFIG_KEY: np.array("[1]")}))
    assert "expected a short text" in refusal(saved(**{CONFIG_KEY: np.ones(3)}))
    assert "another version of qkjax" in refusal(saved(**{CONFIG_KEY: np.array(json.dumps({"gelu": "exact"}))}))
    for broken in ({"pool": "sum"}, {"grid": [0, 9]}, {"grid": "ab"}, {"norm_eps": -1.0}, {"activation": []}):
        assert f"{next(iter(broken))}=" in refusal(saved(**{CONFIG_KEY: np.array(json.dumps(broken))}))


def test_settings_are_checked():
    with pytest.raises(qkjax.QkjaxError, match=r"unknown setting 'gird' .nearest: 'grid'"):
        qkjax.load(DATA / "c.npz", gird=(4, 4))
    with pytest.raises(qkjax.QkjaxError, match="pool='max': expected one of tok, gap"):
        qkjax.load(DATA / "c.npz", pool="max")
    with pytest.raises(qkjax.QkjaxError, match="parameter 'cls' is missing"):
        qkjax.load(DATA / "b.npz", pool="tok")


def test_name_not_in_the_catalogue():
    assert "nearest: 'dinov2-vits14-focus'" in refusal("dinov2-vits14-focs")


def header_positions(data: bytes) -> list[int]:
    """Bytes of the zip and npy headers before each member's data, where damage has most to break."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        starts = [info.header_offset for info in file.infolist() if not info.filename.startswith(("opt", "chrono"))]
    return [start + i for start in starts for i in range(260)]


GOOD = {name: (DATA / f"{name}.npz").read_bytes() for name in "ac"}  # stored, as Google's files are; deflated
HEADERS = {name: header_positions(data) for name, data in GOOD.items()}
GOOD_ARRAYS = {name: arrays(name) for name in GOOD}
kinds = st.sampled_from(["flip", "cut", "zero", "swap"])


def test_directory_that_swallows_its_last_members(tmp_path):
    """A longer comment length in one entry makes zipfile take the entries after it for a comment."""
    data = bytearray(GOOD["a"])
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x01\x02"))  # the last entry but one
    last = len(data) - 22 - data.rindex(b"PK\x01\x02")
    data[at + 32 : at + 34] = last.to_bytes(2, "little")
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(qkjax.QkjaxError, match="its directory omits members; download or copy it again"):
        qkjax.load(path)


@settings(max_examples=250, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(GOOD)),
    mutations=st.lists(st.tuples(kinds, st.integers(0, 10**9), st.integers(1, 4096)), min_size=1, max_size=3),
    aim=st.sampled_from(["anywhere", "headers", "directory"]),
)
def test_mutated_file_is_refused_or_right(tmp_path, name, mutations, aim):
    """Either one clear line, or exactly the parameters of the undamaged file."""
    data = bytearray(GOOD[name])
    for kind, place, amount in mutations:
        if aim == "headers":
            at, amount = HEADERS[name][place % len(HEADERS[name])], 1 + amount % 20  # noqa: PLW2901
        else:
            at = place % len(data) if aim == "anywhere" else max(len(data) - 1 - place % 12_000, 0)
        if kind == "flip":
            data[at % len(data)] ^= 1 + amount % 255
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
        assert loaded.keys() == GOOD_ARRAYS[name].keys()
        for key, value in loaded.items():
            np.testing.assert_array_equal(value, GOOD_ARRAYS[name][key])


def test_member_renamed_in_the_directory_alone(tmp_path):
    """Outside `params/` it would be ignored, and the rest could pass for a model without a class token."""
    data = bytearray(GOOD["a"])
    data[data.rindex(b"params/cls.npy")] ^= 0x02
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(qkjax.QkjaxError, match="its name differs between the directory and the member"):
        qkjax.load(tmp_path / "x.npz")


def test_every_byte_of_a_stored_header(tmp_path):
    """One member's whole header, each byte in turn: numpy's parser has many ways to fail."""
    start = HEADERS["a"][0]
    for at in range(start, start + 260, 3):
        data = bytearray(GOOD["a"])
        data[at] ^= 0x15
        (tmp_path / "x.npz").write_bytes(data)
        try:
            qkjax.load(tmp_path / "x.npz")
        except qkjax.QkjaxError as error:
            assert "x.npz" in str(error)


@pytest.mark.parametrize("dtype", ["V4", "V8", [("a", "<f4")], [("a", "<f2")], "<c8", "<U1", "|b1", "<f16"])
def test_types_that_are_no_weights(saved, dtype):
    assert "expected floating point numbers" in refusal(saved(**{QUERY: np.zeros((64, 4, 16), np.dtype(dtype))}))


def _scanned(**changes) -> dict[str, np.ndarray]:
    with np.load(DATA / "d.npz") as file:
        tree = {key.removeprefix("params/"): file[key] for key in file.files if key.startswith("params/")}
    return tree | changes


@pytest.mark.parametrize("layers", [0, 1, 3, 5])
def test_scanned_blocks_of_unequal_depth(tmp_path, layers):
    key = QUERY.replace("encoderblock_2", "encoderblock")
    np.savez(tmp_path / "x.npz", **_scanned(**{key: np.ones((layers, 64, 4, 16), np.float32)}))
    assert "layers" in refusal(tmp_path / "x.npz") or layers == 0
    np.savez(
        tmp_path / "x.npz", **_scanned(**{"Transformer/encoderblock/LayerNorm_0/bias": np.ones((9999, 1), np.float32)})
    )
    assert "has 9999 layers" in refusal(tmp_path / "x.npz") or "9999" in refusal(tmp_path / "x.npz")


def test_axes_without_length(saved):
    for name, shape in ((QUERY, (64, 0, 16)), ("embedding/kernel", (0, 8, 3, 64)), ("head/kernel", (64, 0))):
        assert "an empty axis" in refusal(saved(**{name: np.ones(shape, np.float32)}))


def test_negative_axes(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (64, -4, -16)}
    _with_member(tmp_path / "x.npz", QUERY, header, bytes(64 * 64 * 4), zipfile.ZIP_STORED)
    refusal(tmp_path / "x.npz")


def test_two_arrays_for_one_parameter(saved, tmp_path):
    tree = arrays()
    twice = refusal(saved(**{"Transformer/posembed_input/pos_embedding": tree["pos_embedding"]}))
    assert "contain the parameter 'pos_embedding'; remove one" in twice
    assert "MAPHead_0/probe" in refusal(saved(probe=tree["MAPHead_0/probe"]))
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("head/bias.npy", b"1")
        file.writestr("head/bias.npy", b"2")
    assert "two members with the same name" in refusal(tmp_path / "y.npz")


@pytest.mark.parametrize("first", [0, 2])
def test_position_embedding_of_many_examples(saved, first):
    refusal(saved(cls=np.ones((1, 1, 64), np.float32), pos_embedding=np.ones((first, 17, 64), np.float32)))


def test_width_without_sine_cosine(tmp_path):
    config = qkjax.ViTConfig(width=6, depth=1, heads=1, head_dim=6, mlp_dim=8, patch_size=(4, 4), grid=(2, 2))
    tree = {
        name: np.ones(shape, np.float32) for name, shape in expected_shapes(config).items() if name != "pos_embedding"
    }
    np.savez(tmp_path / "x.npz", **tree)
    assert "that is a multiple of 4, not 6" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("metadata", [
    {"chunks": [8, 8, 3, 2**34]}, {"chunks": [0, 8, 3, 64]}, {"shape": [8, 8, 3]}, {"chunks": "x"}, {"shape": None},
])  # fmt: skip
def test_tensorstore_metadata_that_lies(tmp_path, metadata):
    folder = tensorstore_folder(tmp_path, ".")
    path = folder / "embedding~kernel" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))
    assert "'embedding/kernel' is damaged" in refusal(folder)


@pytest.mark.parametrize("separator", [".", "/"])
def test_tensorstore_separator(tmp_path, separator):
    """A chunk that lies where the metadata does not say must not be read as zeros."""
    folder = tensorstore_folder(tmp_path, separator)
    for name, value in flatten_dict(qkjax.load(folder).params, sep="/").items():
        np.testing.assert_array_equal(value, arrays()[name])
    path = folder / "embedding~kernel" / ".zarray"
    other = {".": "/", "/": "."}[separator]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dimension_separator": other}))
    assert "is missing" in refusal(folder)


def tensorstore_folder(tmp_path, separator: str):
    import tensorstore

    for name, value in arrays().items():
        folder = tmp_path / "ckpt" / name.replace("/", "~")
        metadata = {"shape": value.shape, "chunks": value.shape, "dtype": "<f4", "dimension_separator": separator}
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}, "metadata": metadata}
        tensorstore.open(spec, create=True).result().write(value).result()
    return tmp_path / "ckpt"


@pytest.mark.parametrize("step", ["../x", "a/b", "/etc", "", "12x"])
def test_last_file_that_names_no_step(tmp_path, step):
    (tmp_path / "ckpt-LAST").write_text(step)
    assert "expected a step such as" in refusal(tmp_path / "ckpt")


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe.npz")
    assert "File name too long" in refusal(tmp_path / ("x" * 300 + ".npz"))


CONFIG_VALUES = st.one_of(
    st.sampled_from(["gap", "map", "none", "gelu", "bicubic", [4, 4], [2, 8], 1e-5]),
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
    np.savez(tmp_path / "x.npz", **GOOD_ARRAYS["c"], **{CONFIG_KEY: np.array(json.dumps(config))})
    try:
        checkpoint = qkjax.load(tmp_path / "x.npz")
    except qkjax.QkjaxError as error:
        assert "\n" not in str(error)
    else:
        images = np.zeros((1, 16, 16, 3), np.float32)
        output, _ = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images)
        assert np.isfinite(output).all()
