"""Tables as text: CSV, and aligned columns."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def to_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table as CSV, with "\\n" at the end of each line."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as lines of text, with a rule under the header.

    Columns are as wide as their widest cell; the first is aligned to the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = []
    for first, *others in [header, rule, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
