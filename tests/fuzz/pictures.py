"""Changes of image files and archives, and pictures as Pillow alone makes them."""

import struct
import tarfile
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from .files import INDEX, files_of
from .kind import change, pick

SIDE = 32
HEADER = {"width": (0, ">I"), "height": (4, ">I"), "depth": (8, ">B"), "colour": (9, ">B"), "packing": (10, ">B"),
          "filter": (11, ">B"), "interlace": (12, ">B")}  # fmt: skip
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 41, 255, 4097, 65536, 200_000, 2**31 - 1, 2**32 - 1])
CHUNKS = {"text": (b"tEXt", b"a\0" + b"x" * 500), "bomb": (b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))),
          "profile": (b"iCCP", b"a\0\0" + zlib.compress(b"x" * 200)), "clear": (b"tRNS", b"\0\1\0\1\0\1"),
          "exif": (b"eXIf", b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
          "gamma": (b"gAMA", b"\0\0\0\0"),
          "unknown": (b"xxXX", b""), "critical": (b"XXXX", b"1"), "end": (b"IEND", b""),
          "data": (b"IDAT", b"\0\0"),
          "header": (b"IHDR", b""), "animation": (b"acTL", b"\xff\xff\xff\xff\0\0\0\0")}  # fmt: skip
IMAGES = st.one_of(
    change("png header", INDEX, st.sampled_from(sorted(HEADER)), SIZES),
    change("png chunk", INDEX, st.integers(0, 3), st.sampled_from(sorted(CHUNKS))),
    change("png without", INDEX, INDEX),
    change("jpeg size", INDEX, SIZES, SIZES),
)
NAMES = ("../x.png", "/x.png", "a\nb.png", "\u202egpj.png", "x" * 90 + ".png", "\x1b[31m.png", "", ".", "x.png/",
         "0.png", "=1.png", "a\\b.png", "\udcff.png", "CON.png")  # fmt: skip
NUMBERS = st.sampled_from([-1, 0, 1, 511, 512, 513, 2**20, 2**31, 2**32, 8**11 - 1, 2**62])
TAR = st.one_of(
    change("tar member", INDEX, st.sampled_from(["size", "mode", "mtime", "uid"]), NUMBERS),
    change("tar type", INDEX, st.sampled_from("0123456789xgLKSNVA\0")),
    change("tar name", INDEX, st.sampled_from(NAMES)),
    change("tar extension", INDEX, st.sampled_from(["9 a=b\n", "", "x", "99999999 path=x\n", "11 size=-1\n",
                                                    "12 size=1e9\n", "14 path=x.png\n", "0 x=y\n"])),
    change("zip name", INDEX, st.sampled_from(NAMES)),
)  # fmt: skip


def images() -> dict[str, bytes]:
    """Small image files in several formats and modes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 10, 3), np.uint8).repeat(5, 0).repeat(4, 1)
    rgb, encoded = Image.fromarray(pixels), {}
    for name, image in {
        "a.png": rgb, "b.jpg": rgb, "c.gif": rgb.quantize(16), "d.bmp": rgb, "e.webp": rgb, "f.tif": rgb, "g.ppm": rgb,
        "h.png": rgb.convert("RGBA"), "i.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 256),
        "j.png": rgb.convert("L"), "k.jpg": rgb.convert("CMYK"),
    }.items():  # fmt: skip
        data = BytesIO()
        image.save(data, format={"jpg": "JPEG", "tif": "TIFF"}.get(name[2:]) or name[2:], lossless=True)
        encoded[name] = data.getvalue()
    return encoded


def reference(data: bytes) -> np.ndarray | None:
    """The picture (32, 32, 3) as Pillow makes it; None for modes whose conversion qkjax defines by itself."""
    from PIL import Image, ImageOps

    with Image.open(BytesIO(data)) as image:
        image.load()
        assert image.mode != "P" or image.palette is not None, "pixels are numbers in a palette that is missing"
        if image.mode not in ("RGB", "L", "CMYK", "P") or image.has_transparency_data:
            return None
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def apply(root: Path, what: str, *arguments) -> None:
    """Applies one of `IMAGES` or `TAR`."""
    _CHANGES[what](root, *arguments)


def _of(root: Path, index: int, *suffixes: str) -> Path:
    return pick(index, [path for path in files_of(root) if path.suffix in suffixes])


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def _write_png(path: Path, chunks: list[tuple[bytes, bytes]]) -> None:
    parts = [struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _png_header(root: Path, index: int, field: str, value: int) -> None:
    path = _of(root, index, ".png")
    (kind, header), *rest = _chunks(path.read_bytes())
    at, form = HEADER[field]
    changed = bytearray(header)
    struct.pack_into(form, changed, at, value % 2 ** (8 * struct.calcsize(form)))
    _write_png(path, [(kind, bytes(changed)), *rest])


def _png_chunk(root: Path, index: int, place: int, name: str) -> None:
    path = _of(root, index, ".png")
    chunks = _chunks(path.read_bytes())
    chunks.insert(place, CHUNKS[name])
    _write_png(path, chunks)


def _png_without(root: Path, index: int, chunk: int) -> None:
    path = _of(root, index, ".png")
    chunks = _chunks(path.read_bytes())
    chunks.remove(pick(chunk, chunks))
    _write_png(path, chunks)


def _jpeg_size(root: Path, index: int, height: int, width: int) -> None:
    path = _of(root, index, ".jpg")
    data = bytearray(path.read_bytes())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height % 2**16, width % 2**16)
    path.write_bytes(data)


def _members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as file:
        return [(info, file.extractfile(info).read() if info.isreg() else b"") for info in file.getmembers()]


def _tar(root: Path, index: int, edit) -> None:
    """Writes a tar file again, with a change of one header, whose checksum is right."""
    path = _of(root, 0, ".tar")
    members, data = _members(path), b""
    chosen = index % len(members)
    for number, (info, content) in enumerate(members):
        if number == chosen:
            edit(info)
        data += info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + content + bytes(-len(content) % 512)
    path.write_bytes(data + bytes(1024))


def _tar_extension(root: Path, index: int, text: str) -> None:
    path = _of(root, 0, ".tar")
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(text)
    block = info.tobuf(tarfile.USTAR_FORMAT) + text.encode().ljust(512, b"\0")
    path.write_bytes(block + path.read_bytes())


def _zip_name(root: Path, index: int, name: str) -> None:
    path = _of(root, 0, ".zip")
    with zipfile.ZipFile(path) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    chosen = index % len(members)
    with zipfile.ZipFile(path, "w") as file:
        for number, (old, data) in enumerate(members):
            file.writestr(name.encode(errors="replace").decode() if number == chosen else old, data)


_CHANGES = {
    "png header": _png_header,
    "png chunk": _png_chunk,
    "png without": _png_without,
    "jpeg size": _jpeg_size,
    "tar member": lambda root, i, field, value: _tar(root, i, lambda info: setattr(info, field, value)),
    "tar type": lambda root, i, kind: _tar(root, i, lambda info: setattr(info, "type", kind.encode())),
    "tar name": lambda root, i, name: _tar(root, i, lambda info: setattr(info, "name", name)),
    "tar extension": _tar_extension,
    "zip name": _zip_name,
}
