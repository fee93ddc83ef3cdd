"""The report: well formed and escaped, and looked at in a browser."""

import html.parser
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.compare import page, pictures, runs, sections
from jaxseg.data import DataInfo

pytest_plugins = ["browser"]

VOID = {"meta", "link", "img", "br", "circle", "rect", "path", "polygon"}
NAMES = ("sky", "<b>road & kerb</b>", "sign_symbol_of_a_long_name", *(f"class {index}" for index in range(18)))


class Checked(html.parser.HTMLParser):
    """Every tag is closed by its own; collects tags, attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], set(), [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def sheet(networks: list[str]) -> pictures.Sheet:
    """Two made-up images through that many networks."""
    info = DataInfo("camvid", NAMES, np.random.default_rng(0).integers(0, 256, (len(NAMES), 3), dtype=np.uint8))
    labels = np.arange(60 * 80, dtype=np.uint8).reshape(60, 80) // 12
    uri = pictures._palette_png(labels, info.palette)
    image = pictures._jpeg(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    shown = [pictures.Picture(f"<i>{n}", image, uri, [uri] * len(networks), [0.5] * len(networks), 0.5) for n in "ab"]
    return pictures.Sheet("camvid", "val", networks, info.class_names, info.palette, shown, 64, 101)


@pytest.fixture
def report(write_run) -> str:
    """Of seeds, a long name, an old run, a running one, published figures, an absent class and other data."""
    counts = np.random.default_rng(0).integers(0, 900, (len(NAMES), len(NAMES))) + 9000 * np.eye(len(NAMES), dtype=int)
    counts[3] = 0
    of_camvid = {"class_names": NAMES, "counts": counts}
    published = {"setting": "<script>alert(1)</script> & a long setting " * 6, "mean_iou": 0.5, "kappa": 0.2}
    folders = [
        *(write_run(f"unet-seed={seed}", train__seed=seed, **of_camvid) for seed in range(3)),
        write_run("a_name_without_a_space_that_is_very_long_" * 3, optim__learning_rate=0.1, **of_camvid),
        write_run("<old>", optim__learning_rate=0.2, old=True, **of_camvid),
        write_run("running", optim__learning_rate=0.3, about={"status": "running", "num_steps": 50}, **of_camvid),
        write_run("published", optim__learning_rate=0.4, published=published, **of_camvid),
        write_run("elsewhere", data__name="voc"),
    ]
    found, notes = runs.read_runs([*folders, folders[0].parent / "missing"])
    groups = runs.group(found)
    notes += runs.warnings(groups)
    return page.page(groups, runs.rows(groups), [sheet([group.label for group in groups])], notes)


def test_the_page_is_well_formed_and_stands_alone(report):
    checked = Checked(report)
    assert "script" not in checked.tags and "<b>road" not in report and "<i>a" not in report
    assert all(address.startswith(("data:", "#")) for address in checked.addresses)
    assert "url(" not in report and "@import" not in report
    for word in ("<b>road & kerb</b>", "<script>alert(1)</script>", "<old>", "kappa 0.2000 (not measured)", "missing"):
        assert word in checked.text, word
    targets = {address[1:] for address in checked.addresses if address.startswith("#")}
    assert targets == {"scores", "classes", "curves", "confusion", "images", "configs"}
    assert all(f'id="{target}"' in report for target in targets)


def test_the_best_of_a_block_is_bold_and_of_one_alone_none(write_run):
    good, bad = np.diag([9, 9, 9]), np.full((3, 3), 3)
    folders = [write_run("good", counts=good), write_run("bad", counts=bad, optim__learning_rate=0.1)]
    groups = runs.group(runs.read_runs(folders)[0])
    table = sections.scores(groups, runs.rows(groups))
    assert table.count('class="best"') == 4 and table.count('<td class="best">1.0000') == 4
    assert 'class="best"' not in sections.scores(groups[:1], runs.rows(groups[:1]))


def test_a_matrix_is_normalised_by_row(write_run):
    counts = np.array([[90, 10, 0], [0, 0, 0], [1, 0, 3]])
    groups = runs.group(runs.read_runs([write_run("a", counts=counts)])[0])
    matrix = sections.matrices(runs.rows(groups))
    assert '--v:90">90</td><td style="--v:10">10</td><td style="--v:0"></td>' in matrix
    assert matrix.count('<td class="none">–</td>') == 3, "a class without pixels"
    assert '--v:25">25</td>' in matrix and '--v:75">75</td>' in matrix


def test_a_matrix_that_can_not_be_read_is_left_out_and_said_so(write_run):
    size = sections.MOST_CLASSES + 1
    names = tuple(f"class {index}" for index in range(size))
    groups = runs.group(runs.read_runs([write_run("a", counts=np.eye(size, dtype=int), class_names=names)])[0])
    matrix = sections.matrices(runs.rows(groups))
    assert "<table" not in matrix and f"left out: a: camvid, val, whole image ({size} classes)" in matrix


@given(st.text(), st.text())
def test_any_text_is_escaped(name, value):
    body = sections._scroll(f"<p>{sections.text(value)}</p>", name)
    assert Checked(body).tags == {"div", "p"}


def test_nothing_in_a_name_reaches_the_page_raw(write_run):
    name = "a\x1b[2J\u202e<b>'\"&"
    folder = write_run(name, class_names=("=sky\r", "\x9b", "<i>"))
    groups = runs.group(runs.read_runs([folder])[0])
    text = page.page(groups, runs.rows(groups), [], ["\x1b note"])
    assert not [char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs")]
    assert not Checked(text).tags & {"b", "i"}
    assert "a\\x1b[2J\\u202e&lt;b&gt;" in text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "narrow"])
def test_a_browser_shows_it(browser, report, tmp_path, width, dark):
    path = tmp_path / "report.html"
    path.write_text(report, encoding="utf-8")
    browser.open(path, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    outside = "[...document.querySelectorAll('body *')].filter(x => !x.closest('.scroll') && !x.closest('svg'))"
    found = browser.evaluate(
        f"JSON.stringify({outside}.filter(x => x.getBoundingClientRect().right > {width} + 1).map(x => x.outerHTML))"
    )
    assert json.loads(found) == []
    broken = "[...document.images].filter(x => !x.naturalWidth).length"
    assert browser.evaluate(broken) == 0
    assert browser.evaluate("document.images.length") == 2 * (2 + 6)
    picture = browser.screenshot()
    assert picture.shape[1] == width and picture.shape[0] > 1500
    assert browser.complaints() == []
    assert browser.requests() == []
    corner = picture[2, 2].mean()
    assert corner < 60 if dark else corner > 240
    for top in range(0, picture.shape[0] - 900, 900):
        assert len({*map(tuple, picture[top : top + 900 : 3, ::3].reshape(-1, 3))}) > 10, f"blank from {top} on"
    contrasts = browser.evaluate(CONTRASTS)
    assert contrasts["count"] > 100 and contrasts["least"] >= 4.5, contrasts


# The lowest contrast of text against what it stands on, by WCAG 2; 4.5 is due for small text.
CONTRASTS = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const known = {};
  const rgba = colour => {
    if (!known[colour]) {
      canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
      known[colour] = [...canvas.getImageData(0, 0, 1, 1).data];
    }
    return known[colour];
  };
  const light = colour => {
    const [r, g, b] = rgba(colour).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {count: 0, least: 99, where: ''};
  for (const x of document.querySelectorAll('p, td, th, small, li, a, h1, h2, h3, svg text, .sheet div, footer')) {
    if (!x.textContent.trim()) continue;
    let below = x;
    while (below.parentElement && rgba(getComputedStyle(below).backgroundColor)[3] < 255) below = below.parentElement;
    const style = getComputedStyle(x), text = light(x.matches('svg text') ? style.fill : style.color);
    const base = light(getComputedStyle(below).backgroundColor);
    const ratio = (Math.max(text, base) + 0.05) / (Math.min(text, base) + 0.05);
    found.count += 1;
    if (ratio < found.least) { found.least = ratio; found.where = x.outerHTML.slice(0, 99); }
  }
  return found;
})()"""
