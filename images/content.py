"""Tells by the name or the first bytes of a file whether it is a picture, an array file or an IDX file."""

import re
import zlib
from pathlib import Path

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")  # Pillow's names of those we read
FORMATS_TEXT = "PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, AVIF, JPEG 2000"
KINDS = f"a folder or .zip of pictures ({FORMATS_TEXT}), a .npy or .npz file of uint8, or IDX files"

PICTURE_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".jxl"),
)
IDX_NAME = re.compile(r"(images|labels)[.-]idx\d-ubyte(\.gz)?$")

UNREAD = {  # pictures that Pillow does not read
    "HEIC": re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL),
    "JPEG XL": re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"),
}
PICTURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|BM....\0\0\0\0|GIF8[79]a|II\*\0|MM\0\*|P[1-6]\s+(#|\d+\s)"
    rb"|....ftypavi[fs]|\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    re.DOTALL,
)
IDX = re.compile(rb"\0\0\x08[\x01-\x04]")  # an IDX file of bytes with one to four axes
ARRAYS = {
    "npy": re.compile(rb"\x93NUMPY"),
    "npz": re.compile(rb"PK\x03\x04.{26}[^\0]+\.npy", re.DOTALL),  # a zip file whose first member is an .npy
}
HEAD = 64  # bytes


def kind_of(path: Path) -> str:
    """The kind of a file: 'picture', 'idx', 'npy' or 'npz'; '' for any other content.

    A file with the name of a picture or an IDX file is not opened, so that a folder of a million pictures is listed in
    seconds. Its content is checked when it is read. For all other files the first bytes decide. If these are unknown,
    the extensions .npy and .npz decide. Raises OSError if the file cannot be read.
    """
    name = path.name.lower()
    if name.endswith(PICTURE_ENDINGS):
        return "picture"
    if IDX_NAME.search(name):
        return "idx"
    start, gzipped = head(path)
    if IDX.match(start):
        return "idx"
    if gzipped:
        return ""
    if PICTURES.match(start) or unread_format(start):
        return "picture"
    by_content = next((kind for kind, signature in ARRAYS.items() if signature.match(start)), "")
    return by_content or {".npy": "npy", ".npz": "npz"}.get(path.suffix, "")


def unread_format(start: bytes) -> str:
    """The name of the picture format in UNREAD that starts with these bytes; '' if there is none."""
    return next((name for name, signature in UNREAD.items() if signature.match(start)), "")


def head(path: Path) -> tuple[bytes, bool]:
    """The first HEAD bytes of a file, decompressed if the file is gzipped, and whether it is gzipped."""
    with path.open("rb") as file:
        start = file.read(16 * HEAD)
    gzipped = start.startswith(b"\x1f\x8b")
    if gzipped:
        try:
            start = zlib.decompressobj(wbits=31).decompress(start, HEAD)
        except zlib.error:
            start = b""
    return start[:HEAD], gzipped
