"""Hostile folders, classes.yaml, archives, polygons and lists: no traceback, no hang, nothing wrong without a word.

Each batch runs in a process of its own, each case in it under a limit of time. A case is *refused* by a UserError of
one line, or *taken*; what is taken has to be right, which is judged without the code that is tested: by PyYAML's own
reading, by the files that were written, by what was packed.
"""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import traceback
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

SEED = 24
COUNTS = {"yaml": 300, "layout": 150, "archive": 200, "polygons": 150, "list": 100}
SECONDS = 60  # of a case; the slowest takes two where nothing else runs
ROOT = Path(__file__).parents[2]


class Wrong(Exception):
    """What was taken and is not right."""


# ---------------------------------------------------------------------------------------------------- classes.yaml

WORDS = [
    "a",
    "cat",
    "dog",
    "caf\u00e9",
    "cafe\u0301",
    "\u732b",
    "yes",
    "null",
    "1",
    "1.5",
    "~",
    '"a b"',
    "'1'",
    "x" * 200,
]
WORDS += [
    '"\\0"',
    '"\\e[2J"',
    '"a\\nb"',
    "\u202eabc",
    "$\\foo$",
    "=1+1",
    "<b>",
    "'a: b'",
    '"\\ud800"',
    "''",
    '" a"',
    "&x a",
    "*x",
]
NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "5",
    "7",
    "200",
    "254",
    "255",
    "256",
    "-1",
    "010",
    "0x1f",
    "1:30",
    "1:60:60",
    "1_0",
    "1e3",
]
NUMBERS += ["9" * 10_000, "2147483648", ".inf", "+3", "'2'", "true", "65535"]
HARD = [
    "a: &a [x,x,x]\nb: &b [*a,*a]\nnames: [*b,*b]",
    "names: " + "[" * 2000 + "]" * 2000,
    "names: &a [*a]",
    "ignore: &a [1, *a]",
    "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(9)) + "\nnames: *a8",
    "ignore: " + "{a: " * 500,
    "%YAML 1.1\n---\nnames: [a, b, c]",
    "names: !!python/object/apply:os.system [true]",
    "names: [a, b, c]\n--- \nnames: [c, b, a]",
    "? [a, b]\n: c",
    "names: !!set {a, b}",
    "names: !!binary aGFsbG8=",
    "names:\n- a\n-\n- c",
    "ignore: 2001-12-14",
    "\ufeffnames: [a, b, c]",
    "names: [a, b, c] # \x00",
    "names: {<<: {1: a}, 2: b}",
]


def yaml_text(rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return rng.choice(HARD).encode("utf-8", "surrogatepass")
    number = lambda: rng.choice(NUMBERS[:7] if rng.random() < 0.9 else NUMBERS)  # noqa: E731
    word = lambda: rng.choice(WORDS[:6] if rng.random() < 0.8 else WORDS)  # noqa: E731
    rgb = lambda: "[" + ", ".join(number() for _ in range(rng.choice([3, 3, 3, 3, 2, 4]))) + "]"  # noqa: E731
    lines = []
    if rng.random() < 0.8:
        few = [word() for _ in range(rng.randint(2, 4))] if rng.random() < 0.3 else WORDS[: rng.randint(2, 4)]
        named = ", ".join(few) if rng.random() < 0.6 else ", ".join(f"{number()}: {w}" for w in few)
        lines.append(f"names: {'{' + named + '}' if ':' in named else '[' + named + ']'}")
    if rng.random() < 0.2:
        lines.append("colours: {" + ", ".join(f"{word()}: {rgb()}" for _ in range(rng.randint(1, 4))) + "}")
    if rng.random() < 0.5:
        several = ", ".join(rgb() if rng.random() < 0.2 else number() for _ in range(rng.randint(0, 4)))
        lines.append(f"ignore: {number() if rng.random() < 0.4 else '[' + several + ']'}")
    data = bytearray("\n".join(lines), "utf-8")
    if rng.random() < 0.15 and data:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.05:
        data = bytearray(bytes(data).decode("utf-8", "replace"), rng.choice(["utf-16", "utf-32", "latin-1"]), "replace")
    return bytes(data)


def try_yaml(rng: random.Random, place: Path) -> None:
    from jaxseg.data.folder import Folder

    likely = rng.choice([[0, 1], [0, 1, 2], [0, 1, 255], [0, 255], [1, 2, 3]])
    values = np.array(likely if rng.random() < 0.8 else rng.sample([0, 1, 2, 3, 5, 7, 255], 4), np.uint8)
    mask = values[np.arange(64).reshape(8, 8) % len(values)]
    write_pair(place / "images" / "a.png", place / "masks" / "a.png", mask)
    write_pair(place / "images" / "b.png", place / "masks" / "b.png", mask)
    text = yaml_text(rng)
    (place / "classes.yaml").write_bytes(text)
    recipe = Folder(str(place), "", False)
    names, table = by_pyyaml(text, values.tolist())
    if list(recipe.info.class_names) != names and names is not None:
        raise Wrong(f"{recipe.info.class_names} instead of {names} of {text[:200]!r}")
    for pairs in recipe.splits().values():
        for pair in pairs:
            labels = recipe.read(pair)[2]
            due = np.array([table.get(int(value), -1) for value in mask.ravel()]).reshape(mask.shape)
            if names is not None and (labels != due).any():
                raise Wrong(f"labels {np.unique(labels)} instead of {np.unique(due)} of {text[:200]!r}")


def by_pyyaml(text: bytes, values: list[int]) -> tuple[list[str] | None, dict[int, int]]:
    """Names and the label of each value as PyYAML's loader reads them; None where the masks alone say the classes."""
    import yaml

    said = yaml.safe_load(text.decode("utf-8-sig"))
    if not said:
        return None, {}
    names, colours, ignore = said.get("names"), said.get("colours"), said.get("ignore", [])
    if names is None and colours is None:
        return None, {}
    named = dict(enumerate(colours)) if names is None else names if isinstance(names, dict) else dict(enumerate(names))
    ignore = ignore if isinstance(ignore, list) else [ignore]
    labels = [] if len(ignore) == 3 and colours else [label for label in ignore if isinstance(label, int)]
    in_order = sorted(named)
    table = {255: 255, **dict.fromkeys(labels, 255), **{label: i for i, label in enumerate(in_order)}}
    if in_order == [0, 1] and not ignore and set(values) == {0, 255}:
        table[255] = 1
    return [unicodedata.normalize("NFC", str(named[label])) for label in in_order], table


# ---------------------------------------------------------------------------------------------------------- folders


def write_pair(image: Path, mask: Path | None, labels: np.ndarray) -> None:
    from PIL import Image

    image.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(image))).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    if mask:
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(mask)


SPLITS = ["train", "val", "test", "valid", "validation", "training", "testing", "Train", "VAL", "holdout", "eval", ""]
NAMES = [b"a", b"b", b"caf\xe9", "caf\xe9".encode(), "cafe\u0301".encode(), b"a b", b"x\ny", b"\x1b[2J", b"=1", b"a.b"]
NAMES += [b".hidden", b"-rf", b"CON", b"x" * 200, "\u202egnp".encode(), b"c", b"d", b"e", b"f"]


def try_layout(rng: random.Random, place: Path) -> None:
    from jaxseg.data.folder import Folder
    from jaxseg.errors import shown

    labels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    for split in rng.sample(SPLITS, rng.randint(1, 4)) + (["train"] if rng.random() < 0.6 else []):
        kind_first = rng.random() < 0.3
        kinds = ["images", "masks"] if rng.random() < 0.9 else ["Images", "labels"]
        images, masks = (place / k / split if kind_first else place / split / k for k in kinds)
        for name in rng.sample(NAMES, rng.randint(0, 5)):
            stem = os.fsdecode(name)
            image, mask = images / f"{stem}.png", masks / f"{stem}.png" if rng.random() < 0.97 else None
            if os.path.lexists(image) or (mask and os.path.lexists(mask)):
                continue
            write_pair(image, mask, labels)
            if rng.random() < 0.1:
                misplace(
                    rng, rng.choice([images, masks]) / f"{stem}{rng.choice(['.png', '.PNG', '.jpg', '.bmp', '.txt'])}"
                )
    if not list(place.iterdir()):
        (place / "images").mkdir()
    written = image_files(place)
    err = io.StringIO()
    stderr, sys.stderr = sys.stderr, err
    try:
        recipe = Folder(str(place), rng.choice(["", "leave_out"]), True)
    finally:
        sys.stderr = stderr
    told, used, ids = err.getvalue(), set(), []
    for split, pairs in recipe.splits().items():
        for pair in pairs:
            used |= {os.fspath(pair.image), os.fspath(pair.labels)}
            name, _, found = recipe.read(pair)
            ids.append(name)
            if (found != labels).any():
                raise Wrong(f"labels of {name!r}")
            if unicodedata.normalize("NFC", pair.image.stem) != unicodedata.normalize("NFC", pair.labels.stem):
                raise Wrong(f"{pair.image} goes with {pair.labels}")
            of_split = {"train": "train", "val": "val", "test": "test"}[split]
            low = [part.lower() for part in pair.image.relative_to(place).parts]
            if any(part.startswith(("val", "test")) and not part.startswith(of_split) for part in low[:-1]):
                raise Wrong(f"{pair.image} is in {split}")
    for path in written - used:
        home, name = os.path.relpath(os.path.dirname(path), place), os.path.basename(path)
        if home not in told and shown(unicodedata.normalize("NFC", name)) not in unicodedata.normalize("NFC", told):
            raise Wrong(f"{path!r} is left out unsaid")
    if not told.isascii() and any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in told.replace("\n", "")):
        raise Wrong("control characters")


def misplace(rng: random.Random, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = rng.choice(["fifo", "dangling", "folder", "empty", "loop", "zero"])
    if os.path.lexists(path):
        path.unlink() if not path.is_dir() else shutil.rmtree(path)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.symlink_to({"dangling": "gone", "loop": path.name, "zero": "/dev/zero"}[kind])


def image_files(place: Path) -> set[str]:
    suffixes = (".png", ".jpg", ".bmp")
    return {
        os.path.join(home, name)
        for home, _, names in os.walk(place)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith(".")
    }


# --------------------------------------------------------------------------------------------------------- archives

CONTENT = {f"top/{name}": hashlib.sha256(name.encode()).digest() * 20 for name in ("one", "two", "three")}


def pack(form: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{form}") as archive:
        for name, content in CONTENT.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def try_archive(rng: random.Random, place: Path) -> None:
    from jaxseg.data.fetch import Archive, unpacked

    form = rng.choice(["", "gz", "gz", "gz", "bz2", "xz"])
    data = bytearray(pack(form))
    how = rng.choice(["flip", "flip", "cut", "insert", "zeros", "header", "pax", "none"])
    if how == "flip":
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "insert":
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.randint(1, 600))
    elif how == "zeros":
        at = rng.randrange(len(data))
        data[at : at + 512] = bytes(512)
    elif how == "header":
        info = tarfile.TarInfo(rng.choice(["a", "../a", "/a", "a" * 90, "a\nb", "a/" * 40 + "b", "top", ""]))
        info.type = rng.choice([bytes([rng.randrange(256)]), *tarfile.SUPPORTED_TYPES])
        info.linkname = rng.choice(["", "../../etc", "/dev/zero", "top/one"])
        info.size = rng.choice([0, 1, 512, 2**30, 2**40])
        try:
            head = bytearray(info.tobuf(rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])))
        except ValueError:
            head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        data, form = head + pack(""), ""
    elif how == "pax":
        text = rng.choice(
            [
                b"path=a\0b",
                b"size=-5",
                b"size=9" + b"9" * 5000,
                b"mtime=nan",
                b"path=" + b"a/" * 3000,
                b"=",
                b"GNU.sparse.map=1,2",
            ]
        )
        record = b"%d %s\n" % (len(text) + len(str(len(text) + 5)) + 2, text)
        head = tarfile.TarInfo("pax")
        head.type, head.size = rng.choice([tarfile.XHDTYPE, tarfile.XGLTYPE]), len(record)
        data, form = bytearray(head.tobuf() + record + bytes(-len(record) % 512) + pack("")), ""
    (place / "made.tgz").write_bytes(data)
    archive = Archive("http://127.0.0.1:9/made.tgz", "md5", hashlib.md5(bytes(data)).hexdigest())
    if rng.random() < 0.1:
        (place / "made" / "top").mkdir(parents=True)
    [folder] = unpacked([archive], place, "", False)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    outside = [p.name for p in place.iterdir() if not p.name.startswith("made")]
    # Without compression there is no checksum inside: the archive's own decides.
    if outside or (found != CONTENT and (form or how == "none")):
        raise Wrong(f"{how} of {form or 'tar'}: {sorted(found)} beside {outside}")


# --------------------------------------------------------------------------------------------- polygons and lists


def try_polygons(rng: random.Random, place: Path) -> None:
    from jaxseg.data.polygons import draw, read_polygons

    values = [
        "3",
        "20.5",
        "-5",
        "40",
        "1e3",
        "1e12",
        "-1e300",
        "nan",
        "inf",
        "1e400",
        "",
        "x",
        "\u0665",
        "0x10",
        "9" * 400,
    ]
    coordinate = lambda: rng.choice(values[:5] if rng.random() < 0.97 else values)  # noqa: E731
    vertex = lambda: f'<Vertex X="{coordinate()}" Y="{coordinate()}"/>'  # noqa: E731
    regions = "".join(
        f"<Region>{''.join(vertex() for _ in range(rng.choice([0, 2, 3, 4, 5, 200])))}</Region>"
        for _ in range(rng.choice([0, 1, 2, 5]))
    )
    text = bytearray(f"<Annotations>{regions}</Annotations>", "utf-8")
    how = rng.random()
    if how < 0.2 and text:
        text[rng.randrange(len(text))] = rng.randrange(256)
    elif how < 0.3:
        del text[rng.randrange(len(text)) :]
    elif how < 0.35:
        text = bytearray(b"<!DOCTYPE a [<!ENTITY b 'c'>" + b"<!ENTITY d '&b;&b;'>" * 5 + b"]>") + text
    elif how < 0.4:
        text = bytearray(b"<a>" * 200_000)
    elif how < 0.43:
        text = bytearray(
            (b"<Region>" + b'<Vertex X="0" Y="0"/><Vertex X="32" Y="0"/><Vertex X="9" Y="24"/>' + b"</Region>") * 10_000
        )
        text = bytearray(b"<A>" + text + b"</A>")
    (place / "a.xml").write_bytes(text)
    polygons, _ = read_polygons(place / "a.xml", (24, 32))
    for full in (False, True):
        labels = draw(polygons, (24, 32), full=full)
        if labels.shape != (24, 32) or labels.max() > 1 or not all(np.isfinite(p).all() for p in polygons):
            raise Wrong("labels")
        if any(np.abs(p).max() > 1e9 for p in polygons):
            raise Wrong("polygons beyond any image are drawn")


def try_list(rng: random.Random, place: Path) -> None:
    from jaxseg.data.camvid import CamVid

    for split in ("train", "val"):
        for name in ("a", "b", "c d"):
            write_pair(
                place / split / f"{name}.png", place / f"{split}annot" / f"{name}.png", np.zeros((8, 8), np.uint8)
            )
    pieces = [
        b"a",
        b"b",
        b"c d",
        b"a.png",
        b"/x/train/a.png /x/trainannot/a.png",
        b"/x/a.png /x/b.png",
        b"../a",
        b"",
        b" ",
    ]
    pieces += [
        b"\0",
        b"\xff",
        b"\x1b[2J",
        b"a a",
        b"c",
        b"x" * 10_000,
        b"a\tb",
        "a".encode("utf-16"),
        b"b.PNG",
        b"/",
        b".",
    ]
    lines = [rng.choice(pieces[:5] if rng.random() < 0.8 else pieces) for _ in range(rng.randint(0, 3))]
    (place / "train.txt").write_bytes(rng.choice([b"\n", b"\r\n", b"\r"]).join(lines))
    ids = [pair.id for pair in CamVid(str(place), "", False).splits()["train"]]
    due = {b"a": "a", b"b": "b", b"c d": "c d", b"a.png": "a", pieces[4]: "a", b"b.PNG": "b", b"a a": "a", b"../a": "a"}
    told = [due.get(line.strip(), line.strip()) for line in lines if line.strip()]
    if ids != told:
        raise Wrong(f"{lines} is read as {ids}")


# ----------------------------------------------------------------------------------------------------- the batches

TRIES = {"yaml": try_yaml, "layout": try_layout, "archive": try_archive, "polygons": try_polygons, "list": try_list}


def batch(kind: str, seed: int, first: int, count: int) -> None:
    """Prints an outcome a case: refused, taken, wrong, traceback or hang."""
    from jaxseg.errors import UserError

    def out_of_time(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, out_of_time)
    for number in range(first, first + count):
        with tempfile.TemporaryDirectory() as place:
            os.environ["TFDS_DATA_DIR"] = f"{place}/prepared"
            (Path(place) / "data").mkdir()
            print(json.dumps({"case": number, "outcome": "hang"}), flush=True)  # if nothing follows
            signal.alarm(SECONDS)
            outcome, detail = "taken", ""
            try:
                TRIES[kind](random.Random(f"{seed} {kind} {number}"), Path(place) / "data")
            except UserError as error:
                detail = str(error)
                outcome = "refused" if detail.isprintable() and len(detail) < 3000 else "wrong"
            except Wrong as error:
                outcome, detail = "wrong", str(error)
            except TimeoutError:
                outcome = "hang"
            except BaseException:
                outcome, detail = "traceback", traceback.format_exc()[-700:]
            finally:
                signal.alarm(0)
        print(json.dumps({"case": number, "outcome": outcome, "detail": detail[:700]}), flush=True)


def outcomes(kind: str, seed: int, count: int, size: int = 50) -> list[dict]:
    found = {}
    first = 0
    while first < count:
        command = [sys.executable, __file__, kind, str(seed), str(first), str(min(size, count - first))]
        limit = 240 + SECONDS
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT, errors="replace")
            lines, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            lines, code = (error.stdout or b"").decode(errors="replace"), None
        told = {row["case"]: row for row in map(json.loads, filter(None, lines.splitlines()[: 10**6]))}
        assert told, done.stderr[-2000:]
        found |= told
        if code:
            found[max(told)] |= {
                "outcome": "traceback",
                "detail": f"the process ended with {code}: {done.stderr[-500:]}",
            }
        first = max(told) + 1
    return [found[number] for number in sorted(found)]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", TRIES)
def test_nothing_hostile_ends_in_a_traceback_a_hang_or_wrong_without_a_word(kind):
    found = outcomes(kind, SEED, COUNTS[kind])
    count = Counter(row["outcome"] for row in found)
    print(kind, dict(count))
    assert len(found) == COUNTS[kind]
    bad = [row for row in found if row["outcome"] not in ("taken", "refused")]
    assert not bad, json.dumps(bad[:5], indent=1)
    assert min(count["taken"], count["refused"]) >= len(found) // 10, "it says nothing where all are taken or refused"


if __name__ == "__main__":
    batch(sys.argv[1], *map(int, sys.argv[2:]))
