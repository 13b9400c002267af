"""The report of an analysis: one self-contained HTML page."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.files import write_text


class Entry(NamedTuple):
    """One section of the report."""

    title: str
    explanation: str  # about two lines of text
    picture: Path | None  # a PNG; None if it could not be drawn
    numbers: Path  # the file with the data of the picture


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 0.3rem; } p { max-width: 46rem; margin: 0.4rem 0; }
.picture { overflow-x: auto; margin: 0.6rem 0; }
img { max-width: 100%; min-width: 45rem; height: auto; display: block; }
pre { overflow-x: auto; background: #f4f4f4; padding: 0.8rem; font-size: 0.85rem; }
.numbers { color: #666; font-size: 0.85rem; }
"""


def write(path: Path, title: str, introduction: str, table: str, entries: Sequence[Entry]) -> None:
    """Writes the page, with the pictures embedded in it.

    The page has the title, the introduction, a table of plain text, and the entries. Texts are escaped.
    """
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(introduction)}</p>", f"<pre>{html.escape(table)}</pre>"]
    for entry in entries:
        body += [
            f"<h2>{html.escape(entry.title)}</h2>",
            f"<p>{html.escape(entry.explanation)}</p>",
            _picture(entry),
            f'<p class="numbers">Numbers: {html.escape(entry.numbers.name)}</p>',
        ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    )
    page = ["<!doctype html>", f'<html lang="en"><head>{head}</head>', "<body>", *body, "</body></html>"]
    write_text(path, "\n".join(page) + "\n")


def _picture(entry: Entry) -> str:
    if entry.picture is None:
        return "<p>This picture could not be drawn.</p>"
    data = base64.b64encode(entry.picture.read_bytes()).decode()
    return f'<div class="picture"><img alt="{html.escape(entry.title)}" src="data:image/png;base64,{data}"></div>'
