"""The report as one HTML page: no script, no file beside it, light or dark as the reader has it."""

import time
from collections.abc import Sequence

from jaxseg.compare import sections, tables
from jaxseg.compare.pictures import Sheet
from jaxseg.compare.runs import Group, Row
from jaxseg.compare.sections import text

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b2027; --muted: #59636e; --line: #d6dbe1; --soft: #f4f6f8; --link: #0a5cb3;
  --hot: #86b6e6; --none: #e9ecef; --warn: #fff5dc; --warn-line: #d79b00;
  --c0: #0b68b0; --c1: #cf5200; --c2: #00875f; --c3: #b5529b; --c4: #a67c00; --c5: #5a4fcf; --c6: #c1272d;
  --c7: #4f5b66;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --text: #e4e8ec; --muted: #9aa5b1; --line: #333a42; --soft: #1c2127; --link: #7db8ff;
    --hot: #22629f; --none: #24292f; --warn: #33290f; --warn-line: #b98900;
    --c0: #56b1f5; --c1: #ff8f4d; --c2: #2ecf9c; --c3: #ea92d2; --c4: #e0bd3a; --c5: #a89cff; --c6: #ff7b7b;
    --c7: #b3bec9;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main, header { max-width: 1240px; margin: 0 auto; padding: 0 20px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 28px 0 6px; }
h2 { font-size: 1.25rem; margin: 44px 0 8px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 18px 0 6px; }
h1, h2, h3 { overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 80ch; overflow-wrap: anywhere; }
a { color: var(--link); }
code { font: 0.92em ui-monospace, monospace; overflow-wrap: anywhere; }
.muted { color: var(--muted); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); padding: 8px 14px; margin: 14px 0; }
.warning ul { margin: 0; padding-left: 18px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; margin: 10px 0; }
.scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.875rem; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; }
td, tbody th { vertical-align: top; }
.words { text-align: left; }
.first { position: sticky; left: 0; background: var(--page); text-align: left; z-index: 1; min-width: 9rem; }
.first small, td small { display: block; color: var(--muted); font-weight: 400; font-size: 0.8rem; }
.first .label { display: inline-block; vertical-align: top; width: max-content; max-width: min(13rem, 26vw); }
.first .label { white-space: normal; overflow-wrap: anywhere; }
.first small { white-space: normal; max-width: 20rem; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--line); white-space: normal; min-width: 4.5rem; }
tr.block th { text-align: left; color: var(--muted); font-weight: 400; background: var(--soft); padding: 4px 10px; }
tr.block span { position: sticky; left: 10px; }
.best { font-weight: 700; }
.key { width: 28px; height: 14px; vertical-align: -2px; fill: currentColor; }
.key path { stroke: currentColor; stroke-width: 2; fill: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 8px 0; padding: 0; }
.legend li { overflow-wrap: anywhere; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 8px 28px; }
.panels figure { margin: 0; min-width: 0; }
.panels figure > svg { display: block; width: 100%; height: auto; }
.panels text { font-size: 13px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.curve { fill: currentColor; }
.curve path { stroke: currentColor; stroke-width: 2; stroke-linejoin: round; fill: none; }
.curve.seed path { stroke-width: 1.4; }
.curve:hover path { stroke-width: 4; }
.heat td { background: color-mix(in srgb, var(--hot) calc(var(--v) * 1%), var(--page)); text-align: center; }
.heat td, .heat tbody th { vertical-align: middle; }
.heat td.none { background: var(--none); color: var(--muted); }
.heat thead th { text-align: center; font-weight: 400; }
.heat td, .heat thead th { padding: 5px 7px; min-width: 3.4rem; border: 1px solid var(--page); }
.matrices { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 10px 28px; }
.matrices figure { margin: 0; min-width: 0; }
.matrices.large { grid-template-columns: minmax(0, 1fr); }
.matrix { font-size: 0.78rem; }
.matrix td, .matrix thead th { padding: 0; min-width: max(1.7rem, min(2.6rem, 29rem / var(--n))); height: 1.8rem; }
.matrix thead th { vertical-align: bottom; border: 0; padding-bottom: 4px; height: auto; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.matrix .first { font-weight: 400; min-width: 0; padding: 0 8px 0 0; text-align: right; border: 0; }
@media (max-width: 600px) { .matrix td, .matrix thead th { min-width: 1.5rem; } }
.classes { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none; padding: 0; margin: 8px 0; }
.classes { font-size: 0.875rem; }
.classes i { display: inline-block; width: 14px; height: 14px; border: 1px solid var(--muted); vertical-align: -2px; }
.sheet { display: grid; gap: 4px 8px; }
.sheet img { display: block; width: 100%; height: auto; image-rendering: auto; }
.sheet .labels { image-rendering: pixelated; }
.sheet > * { min-width: 0; font-size: 0.8rem; font-variant-numeric: tabular-nums; }
.sheet .name { font-weight: 600; font-size: 0.875rem; align-self: end; overflow-wrap: anywhere; }
.sheet .id { grid-column: 1 / -1; margin-top: 12px; font-size: 0.875rem; }
.sheet .id span { position: sticky; left: 0; }
.diff td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 10rem; }
footer { margin: 50px 0 30px; color: var(--muted); font-size: 0.875rem; }
"""


def page(groups: Sequence[Group], rows: Sequence[Row], sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """The whole page; whatever a run, a class or a note is called is escaped."""
    runs = [run for group in groups for run in group.runs]
    count = tables.counted(len(runs), "run")
    parts = {
        "scores": ("Scores", sections.scores(groups, rows)),
        "classes": ("IoU per class", sections.heat_maps(groups, rows)),
        "curves": ("Curves", sections.curves(groups)),
        "confusion": ("Confusion", sections.matrices(rows)),
        "images": ("Images", "".join(map(sections.sheet_grid, sheets))),
        "configs": ("Configs", sections.config_table(groups)),
    }
    parts = {name: (title, body) for name, (title, body) in parts.items() if body}
    links = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in parts.items())
    bodies = "".join(f'<section id="{name}"><h2>{title}</h2>{body}</section>' for name, (title, body) in parts.items())
    data = ", ".join(dict.fromkeys(group.data for group in groups))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing is fetched, whatever stands in the page.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{text(count)} compared: {text(data)}</title>'
        f"<style>{STYLE}</style></head>"
        f"<body><header><h1>{text(count)} compared</h1><p class=muted>{text(_subtitle(groups))}</p>"
        f'<nav aria-label="Sections">{links}</nav>{_warning(notes)}</header><main>{bodies}'
        f"<footer>Written by <code>python -m jaxseg.compare</code> on {time.strftime('%Y-%m-%d at %H:%M')}. "
        "The same table stands in <code>table.md</code> and, with all digits, in <code>table.csv</code>.</footer>"
        "</main></body></html>\n"
    )


def _subtitle(groups: Sequence[Group]) -> str:
    data = ", ".join(dict.fromkeys(group.data for group in groups))
    return f"{tables.counted(len(groups), 'config')} on {data}"


def _warning(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f'<div class="warning" role="note"><ul>{"".join(f"<li>{text(note)}</li>" for note in notes)}</ul></div>'
