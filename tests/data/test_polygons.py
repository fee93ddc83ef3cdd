"""Polygons: what belongs to one, in both conventions, and what is said of files that are not as they should be."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import path
from PIL import Image

from jaxseg.data import polygons as polygons_file
from jaxseg.data.polygons import draw, read_polygons
from jaxseg.errors import UserError

SIZE = (24, 32)
corner = st.tuples(st.integers(-8, 40), st.integers(-8, 32))


def polygon(*points):
    return np.array(points, np.float64)


def test_left_and_top_of_the_outline_belong_to_it():
    square = polygon((2, 3), (6, 3), (6, 5), (2, 5))
    due = np.zeros(SIZE, np.uint8)
    due[3:5, 2:6] = 1
    np.testing.assert_array_equal(draw([square], SIZE), due)
    due[3:6, 2:7] = 1
    np.testing.assert_array_equal(draw([square], SIZE, full=True), due)


def test_a_pixel_belongs_to_it_by_its_centre():
    assert draw([polygon((2.5, 2.5), (3.5, 2.5), (3.5, 3.5), (2.5, 3.5))], SIZE).sum() == 1
    assert draw([polygon((2.1, 2.1), (2.9, 2.1), (2.9, 2.9), (2.1, 2.9))], SIZE).sum() == 0


def test_polygons_that_overlap_do_not_cancel_each_other():
    one, two = polygon((2, 2), (10, 2), (10, 10), (2, 10)), polygon((5, 5), (15, 5), (15, 15), (5, 15))
    for full in (False, True):
        both = draw([one, two], SIZE, full=full)
        np.testing.assert_array_equal(both, draw([one], SIZE, full=full) | draw([two], SIZE, full=full))
        assert both[7, 7] == 1


@given(corner, corner, corner, corner)
def test_what_is_cut_in_two_is_neither_lost_nor_had_twice(a, b, c, d):
    whole = draw([polygon(a, b, c, d)], SIZE)
    parts = draw([polygon(a, b, c)], SIZE).astype(int) + draw([polygon(a, c, d)], SIZE)
    np.testing.assert_array_equal(whole, parts % 2)


@given(st.lists(corner, min_size=3, max_size=8))
def test_the_border_only_cuts_off(points):
    """A polygon on a large sheet, cut out, is the same as on the cutting."""
    points = polygon(*points)
    large, small = draw([points + 40.0], (120, 120)), draw([points], SIZE)
    np.testing.assert_array_equal(large[40 : 40 + SIZE[0], 40 : 40 + SIZE[1]], small)


@given(st.lists(st.tuples(st.floats(-8, 40), st.floats(-8, 32)), min_size=3, max_size=8))
def test_what_lies_off_the_outline_is_as_matplotlib_has_it(points):
    points = polygon(*points)
    centres = np.stack(np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0])), -1).reshape(-1, 1, 2)
    starts, ways = points, np.roll(points, -1, axis=0) - points
    along = ((centres - starts) * ways).sum(-1) / np.maximum((ways**2).sum(-1), 1e-12)
    distance = np.linalg.norm(centres - starts - along.clip(0, 1)[..., None] * ways, axis=-1).min(1)
    within = path.Path(points).contains_points(centres[:, 0])
    clear = (distance > 1e-3).reshape(SIZE)
    np.testing.assert_array_equal(draw([points], SIZE)[clear], within.reshape(SIZE)[clear])


def write_xml(file, *regions):
    """ImageScope's form, each region a list of (x, y)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    vertices = [
        "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in region).join(
            ("<Region><Vertices>", "</Vertices></Region>")
        )
        for region in regions
    ]
    file.write_text(f"<Annotations><Annotation><Regions>{''.join(vertices)}</Regions></Annotation></Annotations>")


def test_what_cannot_be_drawn_is_left_out_and_said(tmp_path):
    file, square = tmp_path / "a.xml", [(2, 3), (6.5, 3), (6, 5)]
    write_xml(file, square, [(1, 1), (2, 2)], [], [(-5, 3), (-1, 3), (-3, 9)], [(50, 1), (60, 1), (55, 9)])
    polygons, notes = read_polygons(file, SIZE)
    assert [p.tolist() for p in polygons] == [[list(point) for point in square]]
    assert notes == [
        "2 of 5 regions have fewer than three points: left out",
        "2 of 5 regions lie wholly outside the image of 24x32: left out",
    ]


@pytest.mark.parametrize("full", [False, True])
def test_a_polygon_that_reaches_far_beyond_the_image_covers_what_it_covers(tmp_path, full):
    file, far = tmp_path / "a.xml", 1_000_000
    write_xml(file, [(-far, -far), (far, -far), (far, 12), (-far, 12)], [(16, -far), (far, 5), (16, far), (16, 5)])
    polygons, notes = read_polygons(file, SIZE)
    due = np.zeros(SIZE, np.uint8)
    due[: 13 if full else 12] = 1
    due[:, 16:] = 1
    np.testing.assert_array_equal(draw(polygons, SIZE, full=full), due)
    assert not notes


def test_regions_without_end_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "a.xml"
    write_xml(file, *[[(0, 0), (2000, 0), (2000, 2000)]] * 700)
    with pytest.raises(UserError, match=r"a\.xml: its 700 regions cover the image of 2000x2000"):
        read_polygons(file, (2000, 2000))
    assert len(read_polygons(file, SIZE)[0]) == 700
    monkeypatch.setattr(polygons_file, "_MOST_VERTICES", 2099)
    with pytest.raises(UserError, match=r"a\.xml: it has more than 2,099 vertices"):
        read_polygons(file, SIZE)


@pytest.mark.parametrize("seed", range(3))
def test_many_vertices_are_drawn_in_parts(seed):
    """A polygon of so many vertices that its edges are taken in several parts."""
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, 5000))
    circle = 500 + 400 * np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = draw([circle], (1000, 1000))
    inside = np.hypot(*(np.mgrid[:1000, :1000] - 500.0)) < 398
    assert labels[inside].all() and labels.sum() < np.pi * 401**2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot read .*a\.xml: No such file"),
        ("<Annotations>", r"cannot read the polygons of .*a\.xml: no element found"),
        ("<Annotations/>", r"a\.xml has no regions"),
        ('<A><Region><Vertex X="1" Y="b"/></Region></A>', r"cannot read the polygons of .*a\.xml: could not convert"),
        ('<A><Region><Vertex X="1"/></Region></A>', r"cannot read the polygons of .*a\.xml"),
        ('<A><Region><Vertex X="1" Y="nan"/></Region></A>', r"cannot read the polygons of .*a\.xml: .*nan"),
        ('<A><Region><Vertex X="1" Y="1e400"/></Region></A>', r"cannot read the polygons of .*a\.xml: .*1e400"),
        ('<A><Region/><Region><Vertex X="-1e12" Y="5"/></Region></A>', r"a\.xml: region 2 .* x -1e\+12, y 5.* 24x32"),
        ("<A>" * 100_000, r"cannot read the polygons of .*a\.xml: no element found"),
        ('<!DOCTYPE A [<!ENTITY a "b">]><A><Region/></A>', r"cannot read the polygons of .*a\.xml: .*DOCTYPE"),
        ('<?xml version="1.0" encoding="nothing"?><A/>', r"cannot read the polygons of .*a\.xml: .*encoding"),
        ('<A><Region><Vertex X="1" Y="1"/></Region></A>', r"a\.xml has nothing to draw on an image of 24x32: 1 of 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_polygons(tmp_path / "a.xml", SIZE)


def test_the_rule_is_that_of_the_ready_masks(real):
    """The figures of the module's text."""
    annotations = sorted((real("monuseg") / "train" / "annotations").iterdir())
    cross, found = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), []
    for file in annotations:
        mask = np.array(Image.open(real("monuseg") / "train" / "masks" / f"{file.stem}.png"))
        polygons, _ = read_polygons(file, mask.shape)
        eroded = np.zeros(mask.shape, np.uint8)
        for one in polygons:
            eroded |= cv2.erode(draw([one], mask.shape, full=True), cross)
        drawn = (draw(polygons, mask.shape), eroded, draw(polygons, mask.shape, full=True))
        found.append([round(float((mask & (d > 0)).sum() / (mask | (d > 0)).sum()), 3) for d in drawn])
    assert found == [[0.998, 0.916, 0.895], [0.992, 0.901, 0.885]]
