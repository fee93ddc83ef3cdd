"""Files that are read back: what breaks a form is one error that names file, entry and value; nothing else escapes."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.errors import UserError, shown
from jaxseg.forms import FORMS, Maybe, Several, Text, Whole, parse, read_json

EVALUATION = {
    "split": "val",
    "checkpoint": "best",
    "step": 3,
    "protocol": "whole image",
    "images": 3,
    "class_names": ["sky", "road"],
    "counts": [[1, 2], [3, 4]],
    "scores": {"mean_iou": 0.5, "iou/sky": None},
    "published": {},
    "loss": 0.3,
}
SOUND = {
    "config.json": {
        "data": {"name": "voc", "scale": [0.5, 2.0]},
        "model": {"name": "unet", "backbone": "vgg16", "options": {"rates": [1, 2]}},
        "loss": {},
        "optim": {"name": "adam", "learning_rate": 0.1},
        "train": {},
    },
    "info.json": {
        "name": "mine",
        "class_names": ["sky", "road"],
        "palette": [[0, 0, 0], [255, 0, 0]],
        "class_weights": None,
        "ignore_label": 255,
    },
    "run.json": {"status": "finished", "step": 3, "best_score": None, "contents": {"val": "ab12"}},
    "evaluations": EVALUATION,
    "metrics.jsonl": {"step": 3, "val/mean_iou": 0.5, "train/loss": None},
    "metadata.json": {
        "key": "camvid",
        "origin": "",
        "remarks": [],
        "sizes": {"val": [[48, 64]]},
        "contents": {"val": "ab12"},
        "pixels": {"val": [[0] * 256, [0] * 256]},
    },
    "progress": {"best_score": 0.5, "losses": [1.0, 2.0], "other_losses": {"gan": [0.1]}},
    "classes.yaml": {"names": {"7": "sky", "9": "road"}, "ignore": [0, 4, [1, 2, 3]]},
}


def text(content):
    return json.dumps(content).encode()


@pytest.mark.parametrize("kind", FORMS)
def test_a_sound_file_is_given_as_it_is(kind):
    assert parse(text(SOUND[kind]), FORMS[kind], "it") == SOUND[kind]


BYTES = {
    "null": b"null",
    "a list": b"[]",
    "a number": b"5",
    "nothing": b"",
    "cut short": b'{"step": 3, "spl',
    "no UTF-8": b'{"step": "\xff\xfe"}',
    "UTF-16": '{"step": 3}'.encode("utf-16"),
    "deep nesting": b"[" * 100_000,
    "deep nesting in an entry": b'{"step": ' + b'{"a": ' * 100_000,
    "an entry twice": b'{"step": 3, "step": 4}',
    "NaN": b'{"step": NaN}',
    "infinity": b'{"step": -Infinity}',
    "10,000 digits": b'{"step": ' + b"1" * 10_000 + b"}",
    "400 digits": b'{"step": %b, "best_step": %b}' % (b"1" * 400, b"1" * 400),
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("what", BYTES)
def test_what_is_no_such_file_is_refused_by_name(kind, what):
    with pytest.raises(UserError, match=r"folder/it\.json.*" + FORMS[kind].remedy.partition(":")[0]) as error:
        parse(BYTES[what], FORMS[kind], "folder/it.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("kind", "entry", "value"),
    [
        ("evaluations", "counts[1]", [3]),
        ("evaluations", "counts[0][1]", "2"),
        ("evaluations", "counts[0][1]", -2),
        ("evaluations", "counts[0][1]", 10**400),
        ("evaluations", "counts[0][1]", 2.0),
        ("evaluations", "counts[0][1]", True),
        ("evaluations", "class_names[1]", "sky"),
        ("evaluations", "class_names", ["sky"]),
        ("evaluations", "scores.mean_iou", 1.5),
        ("evaluations", "scores.iou/sky", -0.1),
        ("evaluations", "scores.mean_iou", "high"),
        ("evaluations", "loss", 1e308),
        ("evaluations", "step", None),
        ("info.json", "palette[1][2]", 256),
        ("info.json", "palette", [[0, 0, 0]]),
        ("info.json", "class_names[1]", "sky"),
        ("info.json", "ignore_label", "255"),
        ("info.json", "class_weights", [1.0]),
        ("run.json", "status", "done"),
        ("run.json", "contents.val", 5),
        ("run.json", "best_score", "high"),
        ("metrics.jsonl", "train/loss", "high"),
        ("metrics.jsonl", "train/loss", 1e308),
        ("metrics.jsonl", "val/mean_iou", 2),
        ("metrics.jsonl", "step", -1),
        ("config.json", "data", 5),
        ("config.json", "data.name", None),
        ("config.json", "data.scale[0]", 1e300),
        ("progress", "losses[1]", "x"),
        ("metadata.json", "sizes.val[0]", [48]),
        ("metadata.json", "pixels.val[1][9]", -1),
    ],
)
def test_the_entry_and_its_value_are_named(kind, entry, value):
    content = json.loads(text(SOUND[kind]))
    part, keys = content, [int(k) if k.isdigit() else k for k in entry.replace("]", "").replace("[", ".").split(".")]
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    with pytest.raises(UserError) as error:
        parse(text(content), FORMS[kind], "it")
    came = {"None": "null", "True": "true"}.get(repr(value), repr(value)[:40])
    named = entry if not isinstance(value, list) else entry.partition("[")[0]
    assert named in str(error.value) and (came in str(error.value) or isinstance(value, list))


def test_an_entry_that_is_missing_and_one_that_there_is_not_are_named():
    without = {key: value for key, value in SOUND["info.json"].items() if key != "palette"}
    with pytest.raises(UserError, match="palette is missing"):
        parse(text(without), FORMS["info.json"], "it")
    with pytest.raises(UserError, match="colors"):
        parse(text(SOUND["info.json"] | {"colors": 5}), FORMS["info.json"], "it")


def leaves(form):
    """The forms within a form."""
    if isinstance(form, Several | Maybe):
        return [form, *leaves(form.form)]
    if isinstance(form, dict):
        return [form, *(leaf for inner in form.values() for leaf in leaves(inner))]
    return [form, *(leaf for inner in form for leaf in leaves(inner))] if type(form) is tuple else [form]


def test_every_form_is_bounded():
    for kind in FORMS.values():
        assert kind.most <= 2**30
        for form in leaves(kind.form):
            if isinstance(form, Text | Several):
                assert form.most <= 2**31
            if isinstance(form, Whole):
                assert form.high <= 2**53


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=5)
    | st.sampled_from([10**400, 1e308, -0.0, "\x1b[2J", "9" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", FORMS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_value_anywhere_is_taken_or_refused_in_one_line(kind, data):
    content = json.loads(text(SOUND[kind]))
    part = content
    while isinstance(part, dict | list) and part:
        key = data.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if not isinstance(part[key], dict | list) or not part[key] or data.draw(st.booleans()):
            part[key] = data.draw(ANYTHING)
            break
        part = part[key]
    try:
        assert parse(text(content), FORMS[kind], "it") == content
    except UserError as error:
        assert shown(str(error)) == str(error)  # so it is one line, too


@pytest.mark.parametrize("kind", ["fifo", "folder", "large", "dangling link"])
def test_only_regular_files_of_a_stated_size_are_read(kind, tmp_path):
    path = tmp_path / "run.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.touch()
        os.truncate(path, FORMS["run.json"].most + 1)
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"run\.json"):
        read_json(path, FORMS["run.json"])


def test_a_file_that_is_not_there_is_another_matter(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "run.json", FORMS["run.json"])
