import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxseg import figures
from jaxseg.figures import curves, overlay, overlay_with_legend, prediction_figure, write_png
from jaxseg.lettering import letter

NAMES = ["background", *(f"class {index}" for index in range(1, 21))]
PALETTE = np.array([(0, 0, 0)] + [(index * 12, 255 - index * 12, index * 37 % 256) for index in range(1, 21)], np.uint8)
DATA = {"class_names": NAMES, "palette": PALETTE}


def _picture(height=60, width=80, classes=(0, 3, 7)):
    rng = np.random.default_rng(height + width)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.resize(np.repeat(classes, height * width // len(classes) + 1), (height, width)).astype(np.uint8)
    return image, labels


def _has(array, colour):
    return bool((array.reshape(-1, 3) == np.array(colour, np.uint8)).all(1).any())


@pytest.fixture
def legends(monkeypatch):
    """The names of every legend that is drawn."""
    drawn = []
    original = figures._legend

    def recording(figure, entries, width):
        drawn.append([name for name, _ in entries])
        return original(figure, entries, width)

    monkeypatch.setattr(figures, "_legend", recording)
    return drawn


def test_overlay_blends_by_alpha():
    image = np.full((2, 3, 3), 100, np.uint8)
    preds = np.array([[0, 1, 2], [255, 1, 2]])
    palette = np.array([(0, 0, 0), (200, 0, 100), (0, 100, 255)], np.uint8)
    result = overlay(image, preds, palette, alpha=0.5)
    assert result.dtype == np.uint8
    expected = [[(100, 100, 100), (150, 50, 100), (50, 100, 178)], [(100, 100, 100), (150, 50, 100), (50, 100, 178)]]
    np.testing.assert_array_equal(result, expected)


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 5\)"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), int), PALETTE)


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (64, 64), (1, 1), (20, 900)])
def test_overlay_with_legend_keeps_the_overlay(size):
    image, preds = _picture(*size)
    sheet = overlay_with_legend(image, preds, **DATA)
    height, width = size
    np.testing.assert_array_equal(sheet[:height, :width], overlay(image, preds, PALETTE))
    if width >= height:
        assert len(sheet) > height
    else:
        assert sheet.shape[1] > width


def test_overlay_legend_names_shares_of_present_classes(legends):
    preds = np.zeros((10, 10), np.uint8)
    preds[:2] = 7
    preds[2, :5] = 255
    overlay_with_legend(np.zeros((10, 10, 3), np.uint8), preds, **DATA)
    assert legends == [["background 75.0 %", "class 7 20.0 %", "ignored 5.0 %"]]


def test_figure_has_the_colours_and_only_present_classes(legends):
    image, labels = _picture(classes=(0, 3, 255))
    _, preds = _picture(classes=(0, 5))
    figure = prediction_figure([image], [labels], [preds], **DATA)
    assert figure.dtype == np.uint8 and figure.ndim == 3 and figure.shape[2] == 3
    assert legends == [["background", "class 3", "class 5", "ignored"]]
    for colour in (PALETTE[3], PALETTE[5], figures.IGNORED):
        assert _has(figure, colour)
    assert not _has(figure, PALETTE[9])


def test_legend_is_drawn_below_the_pictures():
    image, labels = _picture(classes=(3,))
    without_truth = prediction_figure([image], None, None, **DATA)
    with_truth = prediction_figure([image], [labels], None, **DATA)
    assert _has(with_truth[len(without_truth) :], PALETTE[3])


def test_legend_of_all_classes_fits():
    image, labels = _picture(80, 100, classes=tuple(range(21)))
    figure = prediction_figure([image], None, [labels], **DATA)
    margin = np.concatenate([figure[-100:, :4], figure[-100:, -4:]], 1)
    assert (margin == 255).all()
    assert all(_has(figure[-120:], colour) for colour in PALETTE)


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_rows_of_different_sizes(rows):
    sizes = [(60, 80), (80, 60), (333, 500), (20, 200), (200, 20), (1, 1)][:rows]
    pairs = [_picture(*size) for size in sizes]
    images, labels = zip(*pairs, strict=True)
    figure = prediction_figure(images, labels, labels, titles=[f"picture {row} $x_" for row in range(rows)], **DATA)
    assert figure.shape[1] == 4 * figures.CELL + 5 * figures.GAP
    assert len(figure) > rows * 0.4 * figures.CELL


def test_empty_columns_are_left_out():
    image, labels = _picture()
    widths = [
        prediction_figure([image, image], *given, **DATA).shape[1]
        for given in (([labels, labels], [labels, None]), ([None, None], [labels, labels]), (None, None))
    ]
    cells = [(width - figures.GAP) / (figures.CELL + figures.GAP) for width in widths]
    assert cells == [4, 3, 1]


def test_ignore_label_within_the_classes(legends):
    image, labels = _picture(classes=(0, 11))
    prediction_figure([image], [labels], None, class_names=NAMES[:11], palette=PALETTE[:11], ignore_label=11)
    assert legends == [["background", "ignored"]]


@pytest.mark.parametrize("given", [([], None, None), ([np.zeros((4, 4, 3), np.uint8)], [], None)])
def test_figure_refuses_lists_that_do_not_match(given):
    with pytest.raises(ValueError, match="images"):
        prediction_figure(*given, **DATA)


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 10, "train/loss": 1.0}],
        [{"step": step, "train/loss": 1 / step} for step in range(1, 300)],
        [{"step": 10, "train/loss": float("nan")}, {"step": 20, "val/loss": None, "val/mean_iou": float("inf")}],
        [{"step": 10, "val/loss": 1.0, "val/mean_iou": 0.5, "val/pixel_accuracy": 0.75}],
    ],
)
def test_curves_of_few_and_odd_rows(metrics, tmp_path):
    curves(metrics, tmp_path / "figures" / "curves.png", "val")
    with Image.open(tmp_path / "figures" / "curves.png") as picture:
        assert picture.size == (1200, 450)


def test_curves_name_the_best_step(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        figures.Figure, "tight_layout", lambda self: titles.extend(axes.get_title() for axes in self.axes)
    )
    scores = {100: 0.4, 200: 0.7, 300: float("nan"), 400: 0.6}
    curves([{"step": step, "val/mean_iou": score} for step, score in scores.items()], tmp_path / "curves.png", "val")
    assert titles[1] == "val: best mean IoU 0.700 at step 200"


def test_write_png_comes_back(tmp_path):
    image, labels = _picture()
    write_png(tmp_path / "a" / "image.png", image)
    write_png(tmp_path / "grey.png", labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "image.png")), image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grey.png")), labels)


def test_write_png_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    image, _ = _picture()
    path = tmp_path / "image.png"
    write_png(path, image)
    before = path.read_bytes()

    def half(self, file, format):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, 255 - image)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


def test_write_png_puts_the_file_in_place_whole(tmp_path, monkeypatch):
    image, _ = _picture()
    monkeypatch.setattr(figures.os, "replace", lambda source, target: moved.append((Image.open(source).size, target)))
    moved = []
    write_png(tmp_path / "image.png", image)
    assert moved == [((80, 60), tmp_path / "image.png")]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)])
def test_write_png_refuses(array, tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "a.png", array)


def ink(sheet, image):
    """Dark pixels of a legend below a picture."""
    return int((sheet[len(image) :].min(-1) < 128).sum())


@pytest.mark.parametrize(
    "name",
    [
        "$\\foo$",
        "$_$",
        "$x^$",
        "_background_",
        "_",
        "a\\$b",
        "水",
        "😀",
        "a\rb\x1b[2J",
        "\udcff",
        "\u202eabc",
        "x" * 5000,
        "%",
    ],
)
def test_a_class_of_any_name_stands_in_the_legend(name):
    """Mathematics ended matplotlib, a leading underscore hid the name, and a script without a font warned."""
    image, palette = np.full((90, 120, 3), 200, np.uint8), np.array([(0, 0, 0), (255, 255, 0)], np.uint8)
    preds = np.tile(np.array([0, 1], np.uint8), (90, 60))
    names = {"class_names": ["plain", name], "palette": palette}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = overlay_with_legend(image, preds, **names)
        without = overlay_with_legend(image, preds, class_names=["plain", " "], palette=palette)
        titled = prediction_figure([image], [preds], [preds], titles=[name[:40]], **names)
    assert ink(sheet, image) > ink(without, image)
    assert sheet.shape[1] < 2000 and titled.ndim == 3


def test_letters_that_no_font_has_are_escaped_and_said_once(capsys):
    figure = Figure()
    for _ in range(2):
        text = figure.text(0, 0, "")
        letter(text, "a\U0010fffd")
        assert text.get_text() == "a\\U0010fffd" and not text.get_parse_math()
    assert capsys.readouterr().err.count("U+10FFFD") == 1


def test_two_classes_of_one_name_both_stand_in_the_legend(legends):
    preds = np.repeat(np.arange(2, dtype=np.uint8), 32).reshape(8, 8)
    names = {"class_names": ["sky", "sky"], "palette": PALETTE}
    overlay_with_legend(np.zeros((8, 8, 3), np.uint8), preds, **names)
    assert legends == [["sky 50.0 %", "sky 50.0 %"]]
