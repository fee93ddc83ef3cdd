"""The sections of the report as HTML; whatever a run, a class or a field is called is escaped."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.compare import charts, tables
from jaxseg.compare.escaped import html as text
from jaxseg.compare.pictures import Sheet
from jaxseg.compare.runs import Group, Row, differences

MOST_CLASSES = 40  # of a confusion matrix: a larger one can't be read
WIDE = 15  # classes from which a confusion matrix takes the page's whole width


def _scroll(body: str, label: str) -> str:
    """A region that scrolls sideways by itself, by keyboard too, so that the page never does."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{body}</div>'


def _name(groups: Sequence[Group], group: Group) -> str:
    """A group as the head of a line: its key, its label, and what it is."""
    seeds = f" · {len(group.runs)} seeds" if len(group.runs) > 1 else ""
    label = f'<span class="label">{text(group.label)}</span>'
    return f"{charts.key(list(groups).index(group))} {label}<small>{text(group.network)}{seeds}</small>"


def _where(row: Row) -> str:
    """What a row's scores are of."""
    parts = [row.group.data, row.split, row.protocol]
    return ", ".join(filter(None, parts)) + ("" if row.checkpoint in ("best", "") else f", checkpoint {row.checkpoint}")


def _in_blocks(rows: Sequence[Row], columns: int, line: Callable[[Row, Sequence[Row]], str]) -> str:
    """Lines of a table under a heading for each block of rows that can be compared; `line` gets a row and its block."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(_where(row), []).append(row)
    lines = []
    for where, block in blocks.items():
        heading = f'<th colspan="{columns}" scope="rowgroup"><span>{text(where or "no score yet")}</span></th>'
        lines.append(f'<tr class="block">{heading}</tr>' + "".join(line(row, block) for row in block))
    return "".join(lines)


def _best(values: Sequence[float], value: float) -> str:
    """The class of a cell whose value, in the digits that are shown, is the highest of several."""
    known = [round(other, 4) for other in values if not math.isnan(other)]
    return "best" if known and min(known) < max(known) == round(value, 4) else ""


def scores(groups: Sequence[Group], rows: Sequence[Row]) -> str:
    """The table, in blocks of what can be compared; the best of each block is bold."""
    names = tables.shown_scores(rows)
    others = ("steps", "parameters", "multiply-adds", "images/s", "time", "hardware")
    kinds = {"config": "first", "steps": "words", "hardware": "words"}
    header = ["config", *map(tables.name_of, names), *others]
    head = "".join(f'<th scope="col" class="{kinds.get(name, "")}">{text(name)}</th>' for name in header)

    def line(row: Row, block: Sequence[Row]) -> str:
        told = tables.facts(row)
        cells = "".join(_score_cell(row, name, [other.mean(name) for other in block]) for name in names)
        cells += "".join(f'<td class="{kinds.get(name, "")}">{text(told[name])}</td>' for name in others)
        return f'<tr><th scope="row" class="first">{_name(groups, row.group)}</th>{cells}</tr>'

    body = _in_blocks(rows, len(header), line)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    remarks = [
        f"<p class=muted><b>Published</b> beside {text(label)}: {text(setting)}</p>"
        for label, setting in tables.settings(rows).items()
    ]
    return _scroll(table, "Table of scores") + "".join(remarks) + f"<p class=muted>{text(tables.SPREAD)}</p>"


def _score_cell(row: Row, score: str, of_block: Sequence[float]) -> str:
    mean, deviation = row.mean(score), row.deviation(score)
    cell = tables.DASH if math.isnan(mean) else f"{mean:.4f}"
    if not math.isnan(deviation):
        cell += f"<small>± {deviation:.4f}</small>"
    published = row.published.get(score)
    if published is not None:
        cell += f"<small>published {published:.4f}</small>"
    # As published, a loss may be called a score: the highest is not always the best.
    best = "" if score.startswith("published/") else _best(of_block, mean)
    return f'<td class="{best}">{cell}</td>'


def heat_maps(groups: Sequence[Group], rows: Sequence[Row]) -> str:
    """A table a class list, percent in the cells; the mean over seeds."""
    by_classes: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.iou:
            by_classes.setdefault((row.group.data, tuple(row.iou)), []).append(row)
    if not by_classes:
        return ""
    found = ["<p class=muted>Percent; the mean over seeds. A dash: the split has no pixel of the class.</p>"]
    for (data, class_names), of_classes in by_classes.items():
        head = '<th class="first"></th><th scope="col">mean</th>'
        head += "".join(f'<th scope="col">{text(name)}</th>' for name in class_names)

        def line(row: Row, block: Sequence[Row], class_names=class_names) -> str:
            cells = _heat_cell(row.mean("mean_iou"), [other.mean("mean_iou") for other in block])
            cells += "".join(_heat_cell(row.iou[name], [other.iou[name] for other in block]) for name in class_names)
            return f'<tr><th scope="row" class="first">{_name(groups, row.group)}</th>{cells}</tr>'

        body = _in_blocks(of_classes, len(class_names) + 2, line)
        table = f'<table class="heat"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        found.append(_scroll(table, f"IoU per class on {data}"))
    return "".join(found)


def _heat_cell(value: float, of_block: Sequence[float]) -> str:
    if math.isnan(value):
        return f'<td class="none">{tables.DASH}</td>'
    return f'<td class="{_best(of_block, value)}" style="--v:{100 * value:.0f}">{100 * value:.1f}</td>'


def curves(groups: Sequence[Group]) -> str:
    """All curves of all runs as one figure of panels under one legend."""
    found = charts.panels(groups)
    if not found:
        return ""
    entries = "".join(
        f"<li>{charts.key(index)} {text(group.label)}"
        + (f" · {len(group.runs)} seeds" if len(group.runs) > 1 else "")
        + "</li>"
        for index, group in enumerate(groups)
    )
    figures = "".join(f"<figure><h3>{text(title)}</h3>{svg}</figure>" for title, svg in found)
    note = "<p class=muted>Training loss is smoothed. Point at a curve for its run and last value.</p>"
    return f'<ul class="legend">{entries}</ul>{note}<div class="panels">{figures}</div>'


def matrices(rows: Sequence[Row]) -> str:
    """A matrix a row of the table whose counts are known; those of several seeds are summed."""
    found, too_large = [], []
    for row in rows:
        counts = row.counts
        if counts is None:
            continue
        title = f"{row.group.label}: {_where(row)}"
        if len(counts) > MOST_CLASSES:
            too_large.append(f"{title} ({len(counts)} classes)")
            continue
        found.append(f"<figure><h3>{text(title)}</h3>{_scroll(_matrix(counts, list(row.iou)), title)}</figure>")
    left_out = "".join(f"<p class=muted>Too large to be read, left out: {text(title)}</p>" for title in too_large)
    note = (
        "<p class=muted>Each line is a true class, each column what it was taken for: percent of the line's pixels, "
        "empty below half a percent. Seeds are summed.</p>"
    )
    large = " large" if any(len(row.iou) > WIDE for row in rows) else ""
    return f'{note}<div class="matrices{large}">{"".join(found)}</div>{left_out}' if found else left_out


def _matrix(counts: np.ndarray, class_names: Sequence[str]) -> str:
    true = counts.sum(1, keepdims=True)
    shares = 100 * counts / np.maximum(true, 1)
    head = '<th class="first"></th>' + "".join(
        f'<th scope="col"><span>{text(name)}</span></th>' for name in class_names
    )
    lines = []
    for name, line, pixels in zip(class_names, shares, true[:, 0], strict=True):
        if pixels:
            cells = "".join(f'<td style="--v:{v:.0f}">{f"{v:.0f}" if v >= 0.5 else ""}</td>' for v in line)
        else:
            cells = f'<td class="none">{tables.DASH}</td>' * len(line)
        lines.append(f'<tr><th scope="row" class="first">{text(name)}</th>{cells}</tr>')
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<table class="heat matrix" style="--n:{len(class_names)}">{body}</table>'


def sheet_grid(sheet: Sheet) -> str:
    """Image, truth and each prediction, a line an image."""
    columns = ["image", "truth", *sheet.networks]
    colours = [*sheet.palette.tolist(), None]
    entries = [(name, f"rgb({r} {g} {b})") for name, (r, g, b) in zip(sheet.class_names, colours, strict=False)]
    legend = "".join(f'<li><i style="background:{colour}"></i> {text(name)}</li>' for name, colour in entries)
    which = (
        f"{sheet.among} images spread evenly over the {sheet.total}"
        if sheet.among < sheet.total
        else f"the {sheet.total}"
    )
    note = (
        f"<p class=muted>{text(sheet.data)} {text(sheet.split)}: the best and the worst of {which} images by mean IoU "
        "of the image, averaged over the networks. Each network is the best checkpoint of its first seed, on the whole "
        "image, at the size that its run was scored at.</p>"
    )
    parts = [f'<div class="name">{text(name)}</div>' for name in columns]
    for rank, picture in enumerate(sheet.pictures, 1):
        place = f"{_ordinal(rank, len(sheet.pictures))} · " if len(sheet.pictures) > 1 else ""
        parts.append(f'<div class="id"><span>{place}{text(picture.id)} · mean IoU {picture.score:.3f}</span></div>')
        parts.append(f'<div><img src="{picture.image}" alt="{text(picture.id)}"></div>')
        parts.append(f'<div><img class="labels" src="{picture.truth}" alt="truth of {text(picture.id)}"></div>')
        for network, uri, score in zip(sheet.networks, picture.preds, picture.scores, strict=True):
            alt = f"{network} on {picture.id}"
            parts.append(f'<div><img class="labels" src="{uri}" alt="{text(alt)}">{score:.3f}</div>')
    layout = f"grid-template-columns: repeat({len(columns)}, minmax(0, 1fr)); min-width: {160 * len(columns)}px"
    grid = f'<div class="sheet" style="{layout}">{"".join(parts)}</div>'
    return f'{note}<ul class="classes">{legend}</ul>{_scroll(grid, f"Images of {sheet.data}")}'


def _ordinal(rank: int, count: int) -> str:
    return "best" if rank <= count // 2 else "worst"


def config_table(groups: Sequence[Group]) -> str:
    """The fields in which the configs differ."""
    found: Mapping[str, list] = differences(groups)
    if len(groups) < 2:
        return ""
    if not found:
        return "<p class=muted>The configs differ in nothing but their published figures.</p>"
    head = '<th scope="col" class="first">field</th>'
    head += "".join(f'<th scope="col" class="words">{text(group.label)}</th>' for group in groups)
    lines = []
    for field, values in found.items():
        cells = "".join(f"<td><code>{tables.DASH if v is None else text(_value(v))}</code></td>" for v in values)
        lines.append(f'<tr><th scope="row" class="first"><code>{text(field)}</code></th>{cells}</tr>')
    table = f'<table class="diff"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    note = "<p class=muted>Only fields that are not the same in all; a dash where a config has no such field.</p>"
    return note + _scroll(table, "Differences of the configs")


def _value(value: Any) -> str:
    return "''" if value == "" else str(value)
