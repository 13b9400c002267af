"""Emoji of a font and of a sheet: how they are found, laid out, split and labelled, and which files are refused."""

import io
import json
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont, newTable
from fontTools.ttLib.tables.sbixGlyph import Glyph
from fontTools.ttLib.tables.sbixStrike import Strike
from PIL import Image

import datasets
from configs.ddpm import emoji as emoji_config
from configs.ddpm import emoji64
from core.errors import UserError
from core.files import REPOSITORY
from images import emoji
from images.emoji import GROUPS, read_emoji

FONT = REPOSITORY / "tests/data/emoji_font.ttf"
SHOWN = {  # some of the font's pictures: base, group, skin tone
    "1F600": ("1F600", "Smileys & Emotion", 0),
    "1F44B": ("1F44B", "People & Body", 0),
    "1F44B 1F3FB": ("1F44B", "People & Body", 1),
    "1F44B 1F3FF": ("1F44B", "People & Body", 5),
    "1F469 1F3FD 200D 1F680": ("1F469-1F680", "People & Body", 3),  # the font also has the reversed sequence
    "1F469 200D 1F680": ("1F469-1F680", "People & Body", 0),
    "1F3F3 200D 1F308": ("1F308-1F3F3", "Flags", 0),
    "1F1E9 1F1EA": ("1F1E9-1F1EA", "Flags", 0),
    "1F91D": ("1F91D", "People & Body", 0),
    "1FAF1 1F3FB 200D 1FAF2 1F3FC": ("1F91D", "People & Body", 6),
    "31 20E3": ("31-20E3", "Symbols", 0),  # has a private code point as well
    "1F3FB": ("1F3FB", "Component", 1),
    "1F3FF": ("1F3FB", "Component", 5),
    "1F680": ("1F680", "Travel & Places", 0),
}


@pytest.fixture
def config(tmp_path):
    config = emoji_config.get_config()
    config.data.update(path=str(FONT), cache_dir=str(tmp_path / "decoded"), held_out=0.4)
    return config


def test_font_says_what_its_pictures_show():
    """Catches a reversed sequence, a skin tone that makes a new base, and the group of the wrong code point."""
    found, pixels = read_emoji(FONT, 32)
    shown = {one.name: (one.base, GROUPS[one.group], one.tone) for one in found}
    assert shown.items() >= SHOWN.items()
    assert len(shown) == len(found) == len(pixels) == 25


def test_picture_is_centred_on_white_and_averaged():
    """Catches a stretched picture, black in place of transparency, and a filter that mixes neighbouring boxes."""
    with TTFont(FONT) as font:
        glyph = font.getBestCmap()[0x1F680]
        picture = Image.open(io.BytesIO(font["CBDT"].strikeData[0][glyph].imageData)).convert("RGBA")
    assert picture.size == (136, 128)
    colours, alpha = np.split(np.asarray(picture, np.float64), [3], axis=2)
    square = np.pad(255 + (colours - 255) * alpha / 255, ((4, 4), (0, 0), (0, 0)), constant_values=255)
    expected = square.reshape(8, 17, 8, 17, 3).mean(axis=(1, 3))
    found, pixels = read_emoji(FONT, 8)
    rocket = pixels[[one.name for one in found].index("1F680")]
    np.testing.assert_allclose(rocket, expected, atol=1.5)


def test_splits_share_no_base_and_lose_nothing(config):
    """Catches skin tones of one emoji in both splits, and labels in another order than the images."""
    everything, pixels = read_emoji(FONT, 32)
    group_of = {image.tobytes(): one.group for one, image in zip(everything, pixels, strict=True)}
    bases = {}
    for split in ("train", "test"):
        images, labels = datasets.load(config, split)
        shown, _ = emoji.read_split(FONT, split, 0.4, 32)
        bases[split] = {one.base for one in shown}
        assert [group_of.pop(image.tobytes()) for image in images] == labels.tolist() == [one.group for one in shown]
    assert not group_of and not bases["train"] & bases["test"] and bases["test"]


def test_split_is_that_of_the_trained_network():
    """Catches a changed hash or spelling of a base. Training pictures of the network would become test pictures."""
    bases = ["1F600", "1F44B", "1F308-1F3F3", "1F91D", "31-20E3", "1F469-1F680", "1F3FB"]
    assert [base for base in bases if emoji.is_held_out(base, 0.43)] == ["1F308-1F3F3", "31-20E3"]
    assert [base for base in bases if emoji.is_held_out(base, 0.44)] == ["1F308-1F3F3", "31-20E3", "1F469-1F680"]


def test_emoji64_has_the_same_pictures_in_twice_the_size(config):
    """Catches a size that is ignored, and a split that depends on the size."""
    large = emoji64.get_config()
    large.data.update(config.data)
    large.data.image_size = 64
    small, labels = datasets.load(config, "test")
    images, same_labels = datasets.load(large, "test")
    assert images.shape == (len(small), 64, 64, 3) and same_labels.tolist() == labels.tolist()
    halved = images.reshape(-1, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(halved - small).mean() < 3


def save_sbix(path):
    """Saves the font with its pictures in a table of Apple's format."""
    with TTFont(FONT) as font:
        strike = Strike(ppem=109)
        for name, glyph in font["CBDT"].strikeData[0].items():
            strike.glyphs[name] = Glyph(glyphName=name, graphicType="png ", imageData=glyph.imageData)
        font["sbix"] = newTable("sbix")
        font["sbix"].strikes = {109: strike}
        del font["CBDT"], font["CBLC"]
        font.save(path)


def test_apples_format_gives_the_same_pictures(tmp_path):
    """Catches a font that can be read only if its bitmaps are in Google's tables."""
    save_sbix(tmp_path / "sbix.ttf")
    found, pixels = read_emoji(tmp_path / "sbix.ttf", 32)
    expected, same_pixels = read_emoji(FONT, 32)
    assert sorted(found) == sorted(expected)
    assert Counter(image.tobytes() for image in pixels) == Counter(image.tobytes() for image in same_pixels)


@pytest.fixture
def sheet(tmp_path):
    """Makes a sheet of four cells, one of them of another vendor, in the folders of emoji-datasource-google."""
    folder = tmp_path / "package/img/google/sheets"
    folder.mkdir(parents=True)
    cells = np.zeros((2, 34, 2, 34, 4), np.uint8)
    cells[:, 1:33, :, 1:33, 3] = 255
    cells[0, 1:33, 1, 1:33, 0] = 200
    cells[1, 1:33, 0, 1:33, 1] = 100
    Image.fromarray(cells.reshape(68, 68, 4)).save(folder / "32.png")

    def entry(unified, x, y, here=True):
        return {"unified": unified, "sheet_x": x, "sheet_y": y, "has_img_google": here}

    tones = {"1F3FB": entry("1F44B-1F3FB", 0, 1)}
    entries = [entry("2764-FE0F", 0, 0), entry("1F44B", 1, 0) | {"skin_variations": tones}, entry("1F600", 1, 1, False)]
    (tmp_path / "package/emoji.json").write_text(json.dumps(entries))
    return folder / "32.png"


def test_sheet_is_cut_into_its_pictures(sheet):
    """Catches rows and columns swapped, a border in a picture, and empty cells that become pictures."""
    found, pixels = read_emoji(sheet, 8)
    assert [(one.name, one.tone) for one in found] == [("2764", 0), ("1F44B", 0), ("1F44B 1F3FB", 1)]
    expected = np.array([[0, 0, 0], [200, 0, 0], [0, 100, 0]])
    np.testing.assert_array_equal(pixels, np.broadcast_to(expected[:, None, None], pixels.shape))


def test_equal_pictures_are_kept_once(sheet):
    """Catches a picture that is in both splits, or twice in one, because two sequences show it."""
    index = sheet.parents[3] / "emoji.json"
    index.write_text(index.read_text().replace("false", "true"))  # the fourth cell looks like the first
    found, pixels = read_emoji(sheet, 8)
    assert [one.name for one in found] == ["2764", "1F44B", "1F44B 1F3FB"] and len(pixels) == 3


def test_what_is_no_emoji_is_refused_in_one_line(sheet, tmp_path, config):
    """Catches a traceback of fontTools, Pillow or json, and a message that does not say what to give instead."""
    vector = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    (tmp_path / "text.ttf").write_text("no font")
    (tmp_path / "cut.ttf").write_bytes(FONT.read_bytes()[:20_000])
    (tmp_path / "alone.png").write_bytes(sheet.read_bytes())
    sheet.write_bytes(sheet.read_bytes()[:99])
    wrong = {
        vector: "has no coloured bitmaps",
        tmp_path / "text.ttf": "not readable as an emoji font",
        tmp_path / "cut.ttf": "not readable as an emoji font",
        tmp_path / "alone.png": "emoji.json, which describes",
        sheet: "not readable as an emoji font",
        tmp_path / "none.ttf": "none.ttf: set --config.data.path to an emoji font of bitmaps.*fonts-noto-color-emoji",
        "": "data.dataset=emoji needs --config.data.path: an emoji font",
    }
    for path, message in wrong.items():
        config.data.path = str(path)
        with pytest.raises(UserError, match=message) as error:
            datasets.load(config, "train")
        assert "\n" not in str(error.value)


def test_debians_font(tmp_path):
    """Catches lost or doubled pictures in the real font, where it is installed."""
    config = emoji_config.get_config()
    config.data.cache_dir = str(tmp_path)
    if not Path(config.data.path).exists():
        pytest.skip("apt-get install fonts-noto-color-emoji")
    train, test = datasets.load_labelled(config)
    assert len(train.images) + len(test.images) > 3500
    assert set(train.labels) == set(range(len(GROUPS)))
    assert 0.03 < len(test.images) / len(train.images) < 0.08
