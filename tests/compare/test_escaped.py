"""Names from outside in Markdown, CSV and HTML: read as text and as nothing else."""

import csv
import io
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxseg.compare import escaped

SPECIAL = "ab 1|`*_[]()<>&~$#!\\\"';,=+-@＝\t\r\n\x1b\u202e\udcff水.:/"
HOSTILE = st.text(st.sampled_from(SPECIAL), max_size=12) | st.text()


def controls(text: str) -> list[str]:
    return [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@given(HOSTILE)
def test_markdown_is_one_line_of_text(text):
    line = escaped.markdown(text)
    assert not controls(line)
    bare = re.sub(r"\\([^\w\s]|_)", "", line)  # what a backslash makes literal
    assert not re.search(r"[`*\[\]<>|~$]", bare)
    assert not re.search(r"&(?!amp;)", bare)
    assert not re.match(r"[-+#]", line)
    assert not re.search(r"(?<![^\W_])_|_(?![^\W_])", bare)


@pytest.mark.parametrize(
    ("name", "due"),
    [
        ("my_class", "my_class"),
        ("_background_", "\\_background\\_"),
        ("a|b", "a\\|b"),
        ("<b>&amp;", "\\<b\\>&amp;amp;"),
        ("`x`", "\\`x\\`"),
        ("$x$", "\\$x\\$"),
        ("a\nb", "a b"),
        ("\x1b[2J", "\\\\x1b\\[2J"),
        ("0.6086 ± 0.0026", "0.6086 ± 0.0026"),
        ("# x", "\\# x"),
    ],
)
def test_markdown_says_the_name(name, due):
    assert escaped.markdown(name) == due


@given(HOSTILE)
def test_code_ends_where_its_name_does(text):
    line = escaped.code(text)
    ticks = re.match("`+", line).group()
    assert line.endswith(ticks) and not controls(line)
    inside = line[len(ticks) : -len(ticks)]
    assert ticks not in re.findall("`+", inside)
    assert not re.search(r"(?<!\\)\|", inside)


@given(st.lists(HOSTILE, min_size=1, max_size=4))
@example(["=1+1", "x;=1", " =1", "-5", "\t=cmd", "＝1"])
def test_no_cell_is_a_formula_whatever_a_spreadsheet_splits_at(texts):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow([escaped.cell(text) for text in texts])
    for split_at in ",;|":
        for cells in csv.reader(io.StringIO(file.getvalue()), delimiter=split_at):
            assert not [cell for cell in cells if re.match(r"[\s\"]*[=+\-@\t\r＝＋－＠]", cell)]
    assert file.getvalue().count("\n") == 1
    (cells,) = csv.reader(io.StringIO(file.getvalue()))
    assert len(cells) == len(texts) and not any(map(controls, cells))


@pytest.mark.parametrize("number", [-0.5, -3, 0.25, float("nan"), 10**12, None])
def test_numbers_stay_numbers(number):
    assert escaped.cell(number) is number


def test_plain_text_stays_as_it_is():
    for text in ("unet, mobilenet_v2", "whole image, scales 0.5 and 1", "iou/sky", "2 x NVIDIA H200", "a-b", "12;13"):
        assert escaped.cell(text) == text


@given(HOSTILE)
def test_html_is_text(text):
    value = escaped.html(text)
    assert not controls(value) and not re.search("[<>\"']", value)
    assert not re.search(r"&(?!amp;|lt;|gt;|quot;|#x27;)", value)
