"""Pictures of a report as inline SVG: a plotting library would weigh more than the pictures, and nothing may be fetched to see them.

Every function returns a whole figure with a title that is read aloud and a caption that says how to read it.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

LABEL, PLOT, ROW, TOP = 330, 380, 22, 10  # widths and heights in SVG units
WIDTH = LABEL + PLOT + 110

Interval = tuple[str, float, float, float]  # label, value, low, high


def figure(title: str, caption: str, width: float, height: float, drawn: Sequence[str]) -> str:
    """An SVG in its frame."""
    frame = f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{escape(title, quote=True)}">'
    return f"<figure>{frame}{''.join(drawn)}</svg><figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>"


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words at a place; `kind` is a class of the style sheet."""
    return f'<text x="{x:.1f}" y="{y:.1f}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'


def number(value: float) -> str:
    """Three figures that matter."""
    if isinstance(value, int) or float(value).is_integer() and abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:,.3f}" if abs(value) < 0.1 else f"{value:,.2f}"


def bars(title: str, caption: str, rows: Sequence[tuple[str, float]], top: float | None = None, percent: bool = False) -> str:
    """A bar a row; lengths from 0 to `top` or to the longest."""
    most = top or max((abs(value) for _, value in rows), default=1.0) or 1.0
    drawn = []
    for n, (label, value) in enumerate(rows):
        y, width = TOP + n * ROW, PLOT * min(abs(value) / most, 1)
        drawn += [
            text(0, y + 15, short(label)),
            f'<rect class="bar" x="{LABEL}" y="{y + 3}" width="{max(width, 0.5):.1f}" height="14"/>',
            text(LABEL + width + 6, y + 15, f"{value:.0%}" if percent else number(value)),
        ]
    return figure(title, caption, WIDTH, TOP * 2 + ROW * len(rows), drawn)


def forest(title: str, caption: str, rows: Sequence[Interval], reference: float, unit: str = "") -> str:
    """A point with its interval a row, beside a line at the reference."""
    values = [v for _, *three in rows for v in three if np.isfinite(v)] + [reference]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return LABEL + 10 + (PLOT - 20) * float(np.clip((value - low) / span, 0, 1))

    height = TOP * 2 + ROW * (len(rows) + 1)
    drawn = [f'<line class="ref" x1="{place(reference):.1f}" y1="{TOP}" x2="{place(reference):.1f}" y2="{height - ROW}"/>']
    for n, (label, value, bottom, upper) in enumerate(rows):
        y = TOP + n * ROW + 11
        drawn += [
            text(0, y + 4, short(label)),
            f'<line class="span" x1="{place(bottom):.1f}" y1="{y}" x2="{place(upper):.1f}" y2="{y}"/>',
            f'<circle class="bar" cx="{place(value):.1f}" cy="{y}" r="4"/>',
            text(LABEL + PLOT + 4, y + 4, f"{number(value)}", "small"),
        ]
    ends = [
        text(LABEL, height - 8, number(low), "small"),
        text(LABEL + PLOT - 60, height - 8, f"{number(high)} {unit}".strip(), "small"),
    ]
    return figure(title, caption, WIDTH, height, drawn + ends)


def line_up(title: str, caption: str, points: Sequence[tuple[float, float, float, float]], across: str, up: str) -> str:
    """Predicted against found with intervals, beside the line of being right: one square a figure."""
    return figure(title, caption, 420, 400, square(points, across, up, 0.0, 0.0, 400))


def curve(title: str, caption: str, points: Sequence[tuple[float, float, float, float]], across: str, up: str) -> str:
    """A line through (x, y, low, high) with a band from low to high, on axes that begin at 0."""
    width, height, edge = 420.0, 260.0, 46.0
    seen = [point for point in points if np.isfinite(point).all()]
    least, most = min([0.0, *(low for *_, low, _ in seen)]), max([1e-9, *(high for *_, high in seen)])
    last = max([1e-9, *(x for x, *_ in seen)])

    def at(x: float, y: float) -> str:
        return f"{edge + (width - 2 * edge) * x / last:.1f},{height - edge - (height - 2 * edge) * (y - least) / (most - least):.1f}"

    band = [at(x, high) for x, _, _, high in seen] + [at(x, low) for x, _, low, _ in reversed(seen)]
    (x0, zero), (x1, _) = at(0, 0).split(","), at(last, 0).split(",")
    drawn = [
        f'<polygon class="band" points="{" ".join(band)}"/>',
        f'<line class="ref" x1="{x0}" y1="{zero}" x2="{x1}" y2="{zero}"/>',
        f'<polyline class="curve" points="{" ".join(at(x, y) for x, y, *_ in seen)}"/>',
        *(f'<circle class="bar" cx="{place[0]}" cy="{place[1]}" r="4"/>' for x, y, *_ in seen for place in (at(x, y).split(","),)),
        text(4, float(at(0, most).split(",")[1]) + 4, number(most), "small"),
        text(4, float(zero) + 4, "0", "small"),
        text(width - edge - 30, height - edge + 18, number(last), "small"),
        text(edge, height - 8, across, "small"),
        text(4, 18, up, "small"),
    ]
    return figure(title, caption, width, height, drawn)


def square(points: Sequence[tuple[float, float, float, float]], across: str, up: str, left: float, top: float, size: float) -> list[str]:
    """A calibration plot of (predicted, found, low, high) in a square with its upper left corner at a place."""
    edge = 46.0
    values = np.array([v for x, y, low, high in points for v in (x, y, low, high) if np.isfinite(v)] or [0.0, 1.0])
    least, most = float(values.min()), float(values.max())
    span = (most - least) or 1.0
    plot = size - 2 * edge

    def at(x: float, y: float) -> tuple[float, float]:
        return left + edge + plot * (x - least) / span, top + size - edge - plot * (y - least) / span

    (x0, y0), (x1, y1) = at(least, least), at(most, most)
    drawn = [f'<line class="ref" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>']
    for x, y, low, high in points:
        if not np.isfinite([x, y, low, high]).all():
            continue
        px, py = at(x, y)
        drawn.append(f'<line class="span" x1="{px:.1f}" y1="{at(x, low)[1]:.1f}" x2="{px:.1f}" y2="{at(x, high)[1]:.1f}"/>')
        drawn.append(f'<circle class="bar" cx="{px:.1f}" cy="{py:.1f}" r="4"/>')
    words = [
        text(left + edge, top + size - edge + 16, number(least), "small"),
        text(left + size - edge - 30, top + size - edge + 16, number(most), "small"),
        text(left + edge, top + size - edge + 34, across, "small"),
        text(left + 4, top + edge - 14, up, "small"),
    ]
    return drawn + words


def squares(title: str, caption: str, plots: Sequence[tuple[str, Sequence[tuple[float, float, float, float]]]], unit: str) -> str:
    """Small calibration plots side by side, three a row, each with its own heading."""
    size, across = 270.0, 3
    drawn: list[str] = []
    for n, (heading, points) in enumerate(plots):
        left, top = (n % across) * size, (n // across) * (size + 24)
        drawn += [text(left + 8, top + 16, short(heading, 42), "small")]
        drawn += square(points, f"predicted, {unit}", "found", left, top + 14, size)
    rows = (len(plots) + across - 1) // across
    return figure(title, caption, across * size, rows * (size + 24) + 8, drawn)


def spreads(title: str, caption: str, rows: Sequence[tuple[str, np.typing.NDArray[np.float64], np.typing.NDArray[np.float64]]]) -> str:
    """For each row two distributions on 0 to 1, one above and one below a line: who was given an option, and who was not."""
    height, drawn = 74.0, []
    grid = np.linspace(0, 1, 41)
    for n, (label, above_N, below_N) in enumerate(rows):
        middle = TOP + n * height + height / 2
        drawn.append(text(0, middle + 4, short(label)))
        for values_N, sign, kind in ((above_N, -1, "bar"), (below_N, 1, "off")):
            share, _ = np.histogram(values_N, bins=grid)
            most = max(int(share.max(initial=0)), 1)
            for b, count in enumerate(share):
                tall = 30.0 * count / most
                if tall > 0.2:
                    x, y = LABEL + PLOT * grid[b], middle - tall if sign < 0 else middle
                    drawn.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{PLOT / 40:.2f}" height="{tall:.1f}"/>')
        drawn.append(f'<line class="ref" x1="{LABEL}" y1="{middle:.1f}" x2="{LABEL + PLOT}" y2="{middle:.1f}"/>')
    end = TOP + len(rows) * height
    drawn += [text(LABEL, end + 12, "0 %", "small"), text(LABEL + PLOT - 34, end + 12, "100 %", "small")]
    return figure(title, caption, WIDTH, end + 20, drawn)


def pairs(title: str, caption: str, rows: Sequence[tuple[str, float, float]], limit: float) -> str:
    """Two marks a row, before and after, beside a line at the limit (a love plot)."""
    most = max([max(a, b) for _, a, b in rows] + [limit]) or 1.0
    height = TOP * 2 + ROW * (len(rows) + 1)

    def place(value: float) -> float:
        return LABEL + PLOT * value / most

    drawn = [f'<line class="ref" x1="{place(limit):.1f}" y1="{TOP}" x2="{place(limit):.1f}" y2="{height - ROW}"/>']
    for n, (label, before, after) in enumerate(rows):
        y = TOP + n * ROW + 11
        drawn += [
            text(0, y + 4, short(label)),
            f'<circle class="off" cx="{place(before):.1f}" cy="{y}" r="4.5"/>',
            f'<circle class="bar" cx="{place(after):.1f}" cy="{y}" r="4.5"/>',
        ]
    drawn += [text(LABEL, height - 8, "0", "small"), text(LABEL + PLOT - 20, height - 8, number(most), "small")]
    return figure(title, caption, WIDTH, height, drawn)


def short(words: str, most: int = 46) -> str:
    """A label that fits its column."""
    words = words.replace("_", " ")
    return words if len(words) <= most else words[: most - 1] + "…"
