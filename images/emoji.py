"""Colour emoji as small pictures: a font that holds bitmaps, or the sheet of npm's package emoji-datasource-google.

A picture stands for a sequence of code points, which says what it depicts, with which skin tone. The split is by that,
so the skin tones of one picture are all in the training split or all in the test split.
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
VARIANT = 0xFE0F  # requests the colour picture of a character that also has a text form
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
LEADS = ("Flags", "People & Body", "Animals & Nature", "Food & Drink", "Smileys & Emotion")  # they begin sequences

SAME_BASE = {
    "1FAF1-1FAF2": "1F91D",  # shaking hands
    "1F468-1F469-1F91D": "1F46B",  # holding hands
    "1F468-1F468-1F91D": "1F46C",
    "1F469-1F469-1F91D": "1F46D",
    "1F9D1-1F9D1-2764": "1F491",  # with a heart
    "1F48B-1F9D1-1F9D1-2764": "1F48F",  # with a kiss
}
"""Bases of couples with skin tones, which are spelled as two people, to the base of the same couple without."""

Sequence = tuple[int, ...]
"""Code points without variation selectors."""


class Emoji(NamedTuple):
    """What a picture shows.

    Attributes:
      name: its code points in hexadecimal: "1F44B 1F3FB" for a waving hand of light skin.
      base: is the same for all skin tones of a picture: "1F44B".
      group: an index of GROUPS.
      tone: an index of TONE_NAMES.
    """

    name: str
    base: str
    group: int
    tone: int


def is_font(path: Path) -> bool:
    """Whether a path is a font, by its ending."""
    return path.suffix.lower() in FONTS


def is_sheet(path: Path) -> bool:
    """Whether a path may be a sheet, by its ending, which single pictures share."""
    return path.suffix.lower() == SHEET


def source(path: Path, split: str, held_out: float, size: int) -> Source:
    """The 'train' or 'test' split of the emoji in a font or a sheet, as pictures of size x size; labelled by group."""

    def read() -> Pictures:
        emoji, pixels = read_split(path, split, held_out, size)
        names = [one.name for one in emoji]
        return Pictures(names, lambda i: (Image.fromarray(pixels[i]), emoji[i].group))

    status = path.stat()
    stamp = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    return Source(str(path), {"files": [stamp], "held_out": held_out}, read)


def read_split(path: Path, split: str, held_out: float, size: int) -> tuple[list[Emoji], HostPixels]:
    """What the pictures of a split show, and the pictures, as `read_emoji` returns them."""
    emoji, pixels = read_emoji(path, size)
    chosen = [i for i, one in enumerate(emoji) if is_held_out(one.base, held_out) == (split == "test")]
    return [emoji[i] for i in chosen], pixels[chosen]


def read_emoji(path: Path, size: int) -> tuple[list[Emoji], HostPixels]:
    """All emoji that look different at this size, in the order of the file, and their pictures [N, size, size, 3].

    Of equal pictures the first is kept. Raises UserError if the file cannot be read or holds no pictures.
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
    """Whether a base is of the test split. Depends on the base only, so another font splits its pictures alike.

    The shipped network was trained with this split; with another hash it would have seen test pictures.
    """
    return int.from_bytes(hashlib.sha256(base.encode()).digest()[:8], "big") < share * 2**64


# What a sequence means


def describe(spellings: list[Sequence]) -> Emoji:
    """The emoji that has these spellings. Fonts may spell a sequence backwards, too, for text from right to left."""
    name = max(spellings, key=lambda sequence: (-_rank(sequence), len(sequence), sequence))
    return Emoji(
        name=" ".join(f"{code:X}" for code in name),
        base=min(map(base_of, spellings)),
        group=GROUPS.index(_group_of(name)),
        tone=_tone_of(name),
    )


def base_of(sequence: Sequence) -> str:
    """What all skin tones of a picture share; the same for a sequence with joiners and its reverse."""
    codes = [f"{code:X}" for code in sequence if code not in (*TONES, JOINER)]
    key = "-".join(sorted(codes) if JOINER in sequence else codes)
    return SAME_BASE.get(key, key or f"{TONES[0]:X}")  # the five samples of skin are one picture


def _tone_of(sequence: Sequence) -> int:
    tones = {TONES.index(code) + 1 for code in sequence if code in TONES}
    return SEVERAL if len(tones) > 1 else max(tones, default=0)


def _rank(sequence: Sequence) -> int:
    """Low for the spelling that Unicode lists: people, animals, faces and flags precede what is joined to them."""
    if any(before == JOINER and code in TONES for before, code in itertools.pairwise(sequence)):
        return len(LEADS) + 1
    group = _group_of(sequence)
    return LEADS.index(group) if group in LEADS else len(LEADS)


def _group_of(sequence: Sequence) -> str:
    """The group of the first code point. One emoji differs: the eye in a speech bubble is not "People & Body"."""
    firsts, groups = _group_table()
    return groups[max(bisect.bisect(firsts, sequence[0]) - 1, 0)]


@functools.cache
def _group_table() -> tuple[list[int], list[str]]:
    """Code points in ascending order, and the group of the emoji from each of them up to the next.

    Made of Unicode's emoji-test.txt, version 15.0 (unicode.org/Public/emoji/15.0): the group of each first code point.
    The last row is for code points that are no emoji; fonts use some of them for keycaps.
    """
    with GROUP_TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [int(row["first"], 16) for row in rows], [row["group"] for row in rows]


# Reading


def _laid_out(picture: Image.Image, size: int) -> Image.Image:
    """The picture, centred on a white square of its longer side and shrunk; each pixel is a mean over a box."""
    picture = in_colours(picture, channels=3)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((size, size), Image.Resampling.BOX)


def _read_font(path: Path) -> Iterator[tuple[list[Sequence], Image.Image]]:
    """Every picture of a font that text can show, with the sequences that show it."""
    from fontTools.ttLib import TTFont  # takes 0.1 s to import

    with TTFont(path, fontNumber=0) as font:
        spellings = _spellings(font)
        for glyph, png in _bitmaps(font, path).items():
            if glyph in spellings:
                yield spellings[glyph], open_picture(io.BytesIO(png))


def _bitmaps(font: "fontTools.ttLib.TTFont", path: Path) -> dict[str, bytes]:
    """The PNG file of each glyph, from the largest of the font's sets. Raises UserError if it has none."""
    if "CBDT" in font:
        sets = [{name: glyph.imageData for name, glyph in strike.items()} for strike in font["CBDT"].strikeData]
        return sets[int(np.argmax([strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]))]
    if "sbix" in font:
        glyphs = font["sbix"].strikes[max(font["sbix"].strikes)].glyphs
        return {name: glyph.imageData for name, glyph in glyphs.items() if glyph.graphicType == "png "}
    raise UserError(f"{path}: has no coloured bitmaps (tables CBDT or sbix): emoji drawn by outlines are not read")


def _spellings(font: "fontTools.ttLib.TTFont") -> dict[str, list[Sequence]]:
    """The sequences of each glyph: those of the character map, and the ligatures of mapped characters."""
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
    """Every picture of a sheet: its place and its code points are in emoji.json, three folders above."""
    index = (path.resolve().parent / "../../../emoji.json").resolve()
    if not index.exists():
        raise UserError(f"no {index}, which says what {path} shows: leave the sheet in its package emoji-datasource-*")
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
