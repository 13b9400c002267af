"""Reads colour emoji as small pictures from a bitmap font, or from the sheet of npm's package emoji-datasource-google.

Each picture is the glyph of a sequence of Unicode code points, which determines the subject and the skin tone. Pictures
are split by base, the emoji without its skin tone, so all skin tones of an emoji are in the same split.
"""

import bisect
import csv
import functools
import hashlib
import io
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from core.errors import UserError
from core.shapes import HostPixels
from images.decoded import Pictures, Source
from images.pixels import in_colours, one_line, open_picture

FONTS = (".ttf", ".otf", ".ttc")
SHEET = ".png"
KINDS = (
    "an emoji font of bitmaps (apt-get install fonts-noto-color-emoji installs one) or a sheet of npm's package "
    "emoji-datasource-google"
)

JOINER = 0x200D
VARIANT = 0xFE0F  # selects the colour picture of a character that also has a text form
TONES = range(0x1F3FB, 0x1F400)
BORDER = 1  # transparent pixels around each picture of a sheet

GROUPS = (
    *("Smileys & Emotion", "People & Body", "Component", "Animals & Nature", "Food & Drink"),
    *("Travel & Places", "Activities", "Objects", "Symbols", "Flags"),
)
"""Unicode's groups of emoji; the label of a picture is an index of these."""
TONE_NAMES = ("none", "light", "medium-light", "medium", "medium-dark", "dark", "several")
SEVERAL = TONE_NAMES.index("several")  # two people of different skin tones
GROUP_TABLE = Path(__file__).with_name("emoji_groups.csv")
FIRST_GROUPS = ("Flags", "People & Body", "Animals & Nature", "Food & Drink", "Smileys & Emotion")
"""In Unicode's list, a joined sequence begins with a code point of one of these groups; see `_rank`."""

SAME_BASE = {
    "1FAF1-1FAF2": "1F91D",  # shaking hands
    "1F468-1F469-1F91D": "1F46B",  # holding hands
    "1F468-1F468-1F91D": "1F46C",
    "1F469-1F469-1F91D": "1F46D",
    "1F9D1-1F9D1-2764": "1F491",  # with a heart
    "1F48B-1F9D1-1F9D1-2764": "1F48F",  # with a kiss
}
"""Maps the base of a couple with skin tones (two people in Unicode) to the base of the same couple without them."""

Sequence = tuple[int, ...]
"""Code points without variation selectors."""


class Emoji(NamedTuple):
    """What a picture shows.

    Attributes:
      name: the code points in hexadecimal: "1F44B 1F3FB" for a waving hand of light skin.
      base: the code points without skin tones, here "1F44B"; the same for all skin tones of an emoji.
      group: an index into GROUPS.
      tone: an index into TONE_NAMES.
    """

    name: str
    base: str
    group: int
    tone: int


def is_font(path: Path) -> bool:
    """Whether the file extension is that of a font."""
    return path.suffix.lower() in FONTS


def is_sheet(path: Path) -> bool:
    """Whether the file extension is that of a sheet. Single pictures have the same extension."""
    return path.suffix.lower() == SHEET


def source(path: Path, split: str, held_out: float, size: int) -> Source:
    """The 'train' or 'test' split of the emoji in a font or a sheet, as pictures of size x size labelled by group."""

    def read() -> Pictures:
        emoji, pixels = read_split(path, split, held_out, size)
        names = [one.name for one in emoji]
        return Pictures(names, lambda i: (Image.fromarray(pixels[i]), emoji[i].group))

    status = path.stat()
    stamp = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    return Source(str(path), {"files": [stamp], "held_out": held_out}, read)


def read_split(path: Path, split: str, held_out: float, size: int) -> tuple[list[Emoji], HostPixels]:
    """The emoji of a split and their pictures, in the form that `read_emoji` returns."""
    emoji, pixels = read_emoji(path, size)
    chosen = [i for i, one in enumerate(emoji) if is_held_out(one.base, held_out) == (split == "test")]
    return [emoji[i] for i in chosen], pixels[chosen]


def read_emoji(path: Path, size: int) -> tuple[list[Emoji], HostPixels]:
    """All emoji of a file, in its order, and their pictures [N, size, size, 3].

    If several pictures are equal at this size, only the first is kept. Raises UserError if the file cannot be read or
    has no pictures.
    """
    read = _read_sheet if path.suffix.lower() == SHEET else _read_font
    found: dict[bytes, Emoji] = {}
    try:
        for spellings, picture in read(path):
            found.setdefault(_laid_out(picture, size).tobytes(), describe(spellings))
    except UserError:
        raise
    except Exception as error:  # fontTools and Pillow raise many types of exceptions for damaged files
        raise UserError(f"{path}: not readable as {KINDS} ({one_line(error)})") from error
    if not found:
        raise UserError(f"{path}: holds no emoji; give {KINDS}")
    return list(found.values()), np.frombuffer(b"".join(found), np.uint8).reshape(-1, size, size, 3)


def is_held_out(base: str, share: float) -> bool:
    """Whether a base belongs to the test split. This depends on the base only, so all fonts are split in the same way.

    The shipped network was trained with this split. With another hash, it would have seen test pictures.
    """
    return int.from_bytes(hashlib.sha256(base.encode()).digest()[:8], "big") < share * 2**64


# Code point sequences


def describe(spellings: list[Sequence]) -> Emoji:
    """The emoji with these spellings. A font may also contain the reversed sequence, for text from right to left."""
    name = max(spellings, key=lambda sequence: (-_rank(sequence), len(sequence), sequence))
    return Emoji(
        name=" ".join(f"{code:X}" for code in name),
        base=min(map(base_of, spellings)),
        group=GROUPS.index(_group_of(name)),
        tone=_tone_of(name),
    )


def base_of(sequence: Sequence) -> str:
    """The base of a sequence: its code points without skin tones and joiners, as a string.

    A joined sequence and its reverse have the same base. The five pictures of a skin-tone modifier without an emoji all
    have the first modifier as base.
    """
    codes = [f"{code:X}" for code in sequence if code not in (*TONES, JOINER)]
    key = "-".join(sorted(codes) if JOINER in sequence else codes)
    return SAME_BASE.get(key, key or f"{TONES[0]:X}")


def _tone_of(sequence: Sequence) -> int:
    tones = {TONES.index(code) + 1 for code in sequence if code in TONES}
    return SEVERAL if len(tones) > 1 else max(tones, default=0)


def _rank(sequence: Sequence) -> int:
    """Sort key of the spellings of an emoji; it is smallest for the order of code points in Unicode's list.

    In that order people, animals, faces and flags come before the code points that are joined to them.
    """
    if any(before == JOINER and code in TONES for before, code in itertools.pairwise(sequence)):
        return len(FIRST_GROUPS) + 1
    group = _group_of(sequence)
    return FIRST_GROUPS.index(group) if group in FIRST_GROUPS else len(FIRST_GROUPS)


def _group_of(sequence: Sequence) -> str:
    """The group of the first code point.

    For one emoji, the eye in a speech bubble, this is wrong: its group is not "People & Body".
    """
    firsts, groups = _group_table()
    return groups[max(bisect.bisect(firsts, sequence[0]) - 1, 0)]


@functools.cache
def _group_table() -> tuple[list[int], list[str]]:
    """Code points in ascending order, and the group of all code points from each of them up to the next.

    The table was made from Unicode's emoji-test.txt, version 15.0 (unicode.org/Public/emoji/15.0), by the first code
    point of each sequence. Its last row is for code points that are not emoji; fonts use some of them for keycaps.
    """
    with GROUP_TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [int(row["first"], 16) for row in rows], [row["group"] for row in rows]


# Reading


def _laid_out(picture: Image.Image, size: int) -> Image.Image:
    """Centres the picture on a white square as large as its longer side, and shrinks the square by means over boxes."""
    picture = in_colours(picture, channels=3)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((size, size), Image.Resampling.BOX)


def _read_font(path: Path) -> Iterator[tuple[list[Sequence], Image.Image]]:
    """Yields each bitmap glyph that some code point sequence produces, with all these sequences."""
    from fontTools.ttLib import TTFont  # takes 0.1 s to import

    with TTFont(path, fontNumber=0) as font:
        spellings = _spellings(font)
        for glyph, png in _bitmaps(font, path).items():
            if glyph in spellings:
                yield spellings[glyph], open_picture(io.BytesIO(png))


def _bitmaps(font: "fontTools.ttLib.TTFont", path: Path) -> dict[str, bytes]:
    """The PNG file of each glyph, at the largest size in the font. Raises UserError if the font has no bitmaps."""
    if "CBDT" in font:
        sets = [{name: glyph.imageData for name, glyph in strike.items()} for strike in font["CBDT"].strikeData]
        return sets[int(np.argmax([strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]))]
    if "sbix" in font:
        glyphs = font["sbix"].strikes[max(font["sbix"].strikes)].glyphs
        return {name: glyph.imageData for name, glyph in glyphs.items() if glyph.graphicType == "png "}
    raise UserError(f"{path}: has no coloured bitmaps (tables CBDT or sbix): emoji drawn by outlines are not read")


def _spellings(font: "fontTools.ttLib.TTFont") -> dict[str, list[Sequence]]:
    """All code point sequences of each glyph, from the font's character map and its ligatures."""
    characters = font.getBestCmap()
    code_of = {glyph: code for code, glyph in characters.items()}
    spellings = defaultdict(list)
    for code, glyph in characters.items():
        spellings[glyph].append((code,))
    lookups = font["GSUB"].table.LookupList.Lookup if "GSUB" in font else []
    for table in (table for lookup in lookups for table in lookup.SubTable):
        ligatures = getattr(getattr(table, "ExtSubTable", table), "ligatures", {})
        for first, ligature in ((first, ligature) for first, many in ligatures.items() for ligature in many):
            codes = [code_of.get(glyph) for glyph in (first, *ligature.Component)]
            if None not in codes:
                spellings[ligature.LigGlyph].append(tuple(code for code in codes if code != VARIANT))
    return spellings


def _read_sheet(path: Path) -> Iterator[tuple[list[Sequence], Image.Image]]:
    """Yields each picture of a sheet. emoji.json, three folders above, has its position and its code points."""
    index = (path.resolve().parent / "../../../emoji.json").resolve()
    if not index.exists():
        raise UserError(f"no {index}, which describes {path}: do not move the sheet out of its package")
    listed = json.loads(index.read_text(encoding="utf-8"))
    entries = [one for entry in listed for one in (entry, *entry.get("skin_variations", {}).values())]
    with open_picture(path) as opened:
        sheet = opened.convert("RGBA")
    cell = sheet.width // (1 + max(entry["sheet_x"] for entry in entries))
    size = cell - 2 * BORDER
    for entry in (entry for entry in entries if entry["has_img_google"]):
        left, top = (cell * entry[axis] + BORDER for axis in ("sheet_x", "sheet_y"))
        codes = (int(code, 16) for code in entry["unified"].split("-"))
        yield [tuple(code for code in codes if code != VARIANT)], sheet.crop((left, top, left + size, top + size))
