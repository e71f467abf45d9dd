"""Changes of the headers of safetensors and npz files: lengths, offsets, types, shapes, counts and names."""

import io
import json
import struct
import zipfile
from pathlib import Path

from hypothesis import strategies as st

from .files import INDEX, files_of
from .kind import change, pick

NUMBERS = st.sampled_from([-1, 0, 1, 2, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
SAFETENSORS = st.one_of(
    change("header length", NUMBERS),
    change("header", INDEX, st.sampled_from(["dtype", "shape", "data_offsets"]), st.sampled_from([
        "F16", "BF16", "F64", "I8", "U64", "BOOL", "F8_E4M3", "X", "", None, [], [0], [-1], [16], [1, 16], [2**40],
        [2**32, 2**32], [0, 0], [0, 64], [64, 0], [-64, 0], [0, 2**63], [1.5, 2], "x", [16, 16], [8, 32]])),
    change("header name", INDEX, st.sampled_from(["__metadata__", "", "x", "\u202e", "\ud800"])),
)  # fmt: skip
FIELDS = {"version": (4, "<H"), "flags": (6, "<H"), "method": (8, "<H"), "checksum": (14, "<I"), "packed": (18, "<I"),
          "size": (22, "<I"), "name length": (26, "<H"), "extra length": (28, "<H")}  # fmt: skip
DIRECTORY = {"flags": (8, "<H"), "method": (10, "<H"), "checksum": (16, "<I"), "packed": (20, "<I"),
             "size": (24, "<I"), "name length": (28, "<H"), "extra length": (30, "<H"), "comment": (32, "<H"),
             "offset": (42, "<I")}  # fmt: skip
END = {"count here": (8, "<H"), "count": (10, "<H"), "size": (12, "<I"), "offset": (16, "<I"), "comment": (20, "<H")}
ZIP = st.one_of(
    change("zip member", INDEX, st.sampled_from(sorted(FIELDS)), NUMBERS),
    change("zip directory", INDEX, st.sampled_from(sorted(DIRECTORY)), NUMBERS),
    change("zip end", st.sampled_from(sorted(END)), NUMBERS),
    change("zip again", INDEX, st.sampled_from(["deflated", "twice", "folder", "bzip2", "lzma", "bomb"])),
)
NPZ = st.one_of(
    ZIP,
    change("npy header", INDEX, st.sampled_from([
        "{}", "", "x", "[1]", "{'descr': '<f4'}", "{'descr': '<f4', 'fortran_order': False, 'shape': (16, -1)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (16,)}", "{'descr': '<f4', 'fortran_order': 3, 'shape': ()}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776)}", "(" * 300,
        "{'descr': [('a', '<f2'), ('b', '<f2')], 'fortran_order': False, 'shape': (16,)}",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (16, 16)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (16,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (16L,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 16)}"])),
)  # fmt: skip


def _first(root: Path, *suffixes: str) -> Path:
    return pick(0, [path for path in files_of(root) if path.suffix in suffixes])


def _header_length(root: Path, length: int) -> None:
    path = _first(root, ".safetensors")
    path.write_bytes(struct.pack("<Q", length % 2**64) + path.read_bytes()[8:])


def _edit_header(root: Path, edit) -> None:
    path = _first(root, ".safetensors")
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def _header(root: Path, index: int, field: str, value) -> None:
    _edit_header(root, lambda header: header[pick(index, sorted(header))].__setitem__(field, value))


def _header_name(root: Path, index: int, name: str) -> None:
    _edit_header(root, lambda header: header.__setitem__(name, header.pop(pick(index, sorted(header)))))


def _patch(path: Path, signature: bytes, index: int, place: tuple[int, str], value: int) -> None:
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data) - 3) if data[i : i + 4] == signature]
    at, form = place
    struct.pack_into(form, data, pick(index, starts) + at, value % 2 ** (8 * struct.calcsize(form)))
    path.write_bytes(data)


def _zip_again(root: Path, index: int, how: str) -> None:
    path = _first(root, *ARCHIVES)
    with zipfile.ZipFile(path) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    method = {"deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
    name, data = pick(index, members)
    if how == "twice":
        members.append((name, data))
    elif how == "folder":
        members.insert(0, (f"{name}/", b""))
    elif how == "bomb":
        members[index % len(members)] = name, data + bytes(200_000_000)
    with zipfile.ZipFile(path, "w", method.get(how, zipfile.ZIP_DEFLATED if how == "bomb" else 0)) as file:
        for name, data in members:
            file.writestr(name, data)


def _npy_header(root: Path, index: int, text: str) -> None:
    path, whole = _first(root, ".npz"), io.BytesIO()
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    name = pick(index, sorted(members))
    length = struct.unpack("<H", members[name][8:10])[0]
    header = text.encode().ljust(length - 1) + b"\n"
    members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + members[name][10 + length :]
    with zipfile.ZipFile(whole, "w") as file:
        for member, data in members.items():
            file.writestr(member, data)
    path.write_bytes(whole.getvalue())


ARCHIVES = (".npz", ".zip", ".pt", ".pth", ".bin")
CHANGES = {
    "header length": _header_length,
    "header": _header,
    "header name": _header_name,
    "zip member": lambda root, i, f, x: _patch(_first(root, *ARCHIVES), b"PK\x03\x04", i, FIELDS[f], x),
    "zip directory": lambda root, i, f, x: _patch(_first(root, *ARCHIVES), b"PK\x01\x02", i, DIRECTORY[f], x),
    "zip end": lambda root, f, x: _patch(_first(root, *ARCHIVES), b"PK\x05\x06", 0, END[f], x),
    "zip again": _zip_again,
    "npy header": _npy_header,
}
