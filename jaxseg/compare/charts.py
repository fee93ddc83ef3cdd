"""Curves of all runs as SVG, drawn as text: crisp at any size, and in the colours of the page that they stand in."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxseg.compare import escaped
from jaxseg.compare.runs import Group
from jaxseg.files import score_key

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 10, 40
COLOURS = 8  # variables --c0, --c1, ... of the page
MARKERS = ("circle", "square", "diamond", "triangle")
POINTS = 300  # of a curve; more are gathered into means
Series = tuple[np.ndarray, np.ndarray]


def series(rows: Sequence[Mapping[str, float]], key: str) -> Series:
    """Steps and finite values of the rows that have the key; means of neighbours where there are very many."""
    pairs = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    points = np.array(pairs, float).reshape(-1, 2)
    if len(points) > POINTS:
        points = np.array([part.mean(0) for part in np.array_split(points, POINTS)])
    return points[:, 0], points[:, 1]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a window around each point, a twentieth of all wide, shorter at both ends."""
    half = len(values) // 40
    return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])


def style(index: int) -> tuple[str, str]:
    """The colour's variable and the marker of the `index`-th group."""
    return f"var(--c{index % COLOURS})", MARKERS[(index + index // COLOURS) % len(MARKERS)]


def marker(kind: str, x: float, y: float, size: float = 4) -> str:
    """An SVG element in the current colour."""
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    if kind == "square":
        return f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"/>'
    corners = [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)] if kind == "diamond" else [(0, -1.3), (1.3, 1), (-1.3, 1)]
    return f'<polygon points="{" ".join(f"{x + a * size:.1f},{y + b * size:.1f}" for a, b in corners)}"/>'


def key(index: int) -> str:
    """A small picture of a group's line and marker, for legends and tables."""
    colour, kind = style(index)
    return (
        f'<svg class="key" viewBox="0 0 28 14" aria-hidden="true" style="color:{colour}">'
        f'<path d="M1 7H27"/>{marker(kind, 14, 7)}</svg>'
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`, whose first and last enclose both."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high)))
    if span < 1e-12:
        span = 1.0
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick_text(value: float) -> str:
    """`0.25`, `900`, `20k`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % size == 0 and letter == "M"):
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def panels(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Title and SVG of each: training loss, then loss and two scores of each split; what no run has is left out."""
    wanted = {"Training loss": "train/loss"}
    scores = {"Loss": "loss", "Mean IoU": "mean_iou", "Pixel accuracy": "pixel_accuracy"}
    # Scores of several splits are no contest: each has figures of its own.
    splits = dict.fromkeys(run.eval_split for group in groups for run in group.runs)
    wanted |= {f"{title} on {split}": score_key(split, score) for split in splits for title, score in scores.items()}
    found = []
    for title, key in wanted.items():
        if any(len(series(run.rows, key)[0]) for group in groups for run in group.runs):
            found.append((title, panel(groups, title, key)))
    return found


def panel(groups: Sequence[Group], title: str, key: str) -> str:
    """One pair of axes with a line a run."""
    is_loss, is_training = key.endswith("loss"), key == "train/loss"
    lines = []
    for index, group in enumerate(groups):
        for run in group.runs:
            steps, values = series(run.rows, key)
            if len(steps):
                lines.append((index, run.name, steps, smoothed(values) if is_training else values))
    # A loss may start orders of magnitude above where it ends: the first tenth of a curve does not set the scale.
    tops = [values[len(values) // 10 if is_loss else 0 :].max() for *_, values in lines]
    lows = [values.min() for *_, values in lines]
    y_ticks = ticks(min(0.0, *lows) if is_loss else min(lows), max(tops))
    x_ticks = ticks(0.0, max(steps[-1] for *_, steps, _ in lines), 6)
    x_high = max(steps[-1] for *_, steps, _ in lines)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_of(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * step / (x_high or 1)

    def y_of(value):
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - y_low) / (y_high - y_low))

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped.html(title)} of all runs over the steps">'
    ]
    digits = max(len(f"{value:g}".partition(".")[2]) for value in y_ticks)
    for value in y_ticks:
        y = y_of(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>')
    for value in x_ticks:
        if value <= x_high:
            text = (
                f'<text x="{x_of(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick_text(value)}</text>'
            )
            parts.append(text)
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    # A window for the curves cuts off what is above the scale; markers reach over its other sides.
    box = f"{LEFT - 6} {TOP} {WIDTH - LEFT - RIGHT + 12} {HEIGHT - TOP - BOTTOM + 6}"
    x, y, width, height = box.split()
    parts.append(f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">')
    for index, name, steps, values in lines:
        colour, kind = style(index)
        places = [(x_of(step), y_of(value)) for step, value in zip(steps, values, strict=True)]
        many = len(groups[index].runs) > 1
        classes = "curve seed" if many else "curve"
        parts.append(f'<g class="{classes}" style="color:{colour}">')
        words = f"{groups[index].label}, {name}" if many else name
        parts.append(f"<title>{escaped.html(words)}: {values[-1]:.4f} at step {steps[-1]:g}</title>")
        parts.append(f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
        if len(places) <= (2 if is_training else 40):
            parts += [marker(kind, x, y, 3.5) for x, y in places]
        parts.append("</g>")
    return "".join(parts) + "</svg></svg>"
