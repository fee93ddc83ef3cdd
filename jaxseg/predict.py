"""A trained run on anybody's images: in Python by `load`, as a command by `python -m jaxseg.predict`."""

import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxseg import checksums, protocols
from jaxseg import config as configs
from jaxseg.checkpoint import read_variables
from jaxseg.data.headers import ORIENTATIONS, SHOWN, STORED, kind_of
from jaxseg.environment import check_environment
from jaxseg.errors import Parser, UserError, printable, shown
from jaxseg.files import open_regular, replacing
from jaxseg.lookup import lookup
from jaxseg.predictor import LARGE, WINDOW, Predictor
from jaxseg.process import one_line_errors, use_compile_cache
from jaxseg.state import abstract_variables
from jaxseg.streams import keep_streams, print_line


def load(workdir: str | os.PathLike, *, checkpoint: str | int = "best") -> Predictor:
    """The trained network of a run.

    The run may be going on: where a checkpoint gives way to the next while it is read, the next is loaded.

    Args:
      workdir: of `jaxseg.main`.
      checkpoint: 'best' by the score that `train.best` names, 'latest' or a step.

    Raises:
      UserError: `workdir` holds no run, no such checkpoint or a damaged one, or its `config.json` or `info.json` was
        edited by hand, see `checksums.accepting_edited`. A run without checksums is loaded with a warning.
    """
    return _load(workdir, checkpoint, lambda line: warnings.warn(line, stacklevel=3))


def _load(workdir: str | os.PathLike, checkpoint: str | int, note: Callable[[str], object]) -> Predictor:
    config = configs.read(workdir)
    configs.validate(config)
    configs.check_normalised(config, workdir)
    info = configs.read_info(workdir, config)
    if line := checksums.note(workdir):
        note(line)
    model = configs.build_model(config, info.num_classes)
    variables, _, step = read_variables(workdir, abstract_variables(model), checkpoint, note)
    protocol = protocols.from_config(config.eval)
    orientation = ORIENTATIONS[config.data.orientation]
    return Predictor(model, variables, info, step, config.data.mean, config.data.std, protocol, orientation)


def read_image(path: str | os.PathLike, orientation: str = SHOWN) -> np.ndarray:
    """An image file as uint8 `[H, W, 3]`, RGB, by the rules of `jaxseg.data.pictures`.

    Args:
      path: of a JPEG, PNG, TIFF, WebP or BMP file.
      orientation: 'shown': turned as EXIF or TIFF say that it is shown; 'stored': as its pixels lie.

    Raises:
      UserError: it can't be read, is broken or cut short, is of another kind, or has more pixels than 2^28 or what the
        environment variable JAXSEG_MAX_PIXELS says.
    """
    return _read(path, orientation)[0]


def _read(path: str | os.PathLike, orientation: str):
    """The image, and the `Picture` that it was turned from."""
    from jaxseg.data import pictures

    turn = lookup(ORIENTATIONS, orientation, "orientation of images") == SHOWN
    with pictures.named(path):
        picture = pictures.decode(pictures.read_file(path))
    return pictures.turned(picture.pixels, picture.header.orientation if turn else 1), picture


def write_palette_png(path: pathlib.Path, preds: np.ndarray, palette: np.ndarray) -> None:
    """Writes uint8 `[H, W]` class indices as a PNG whose palette has the colours, as VOC's masks are."""
    from PIL import Image

    image = Image.fromarray(preds).convert("P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def predict_files(
    workdir: str,
    source: str,
    output: str,
    *,
    checkpoint: str = "best",
    window: int | None = None,
    orientation: str = "",
    log=print_line,
) -> int:
    """Predicts an image or every image of a folder; `NAME.png` and `NAME_overlay.png` go to `output`.

    `window` is that of `Predictor.__call__`, `orientation` that of `read_image`, '' for the run's own.

    Returns:
      How many images were predicted; files that are no images are named and skipped.

    Raises:
      UserError: no run, no input, no image among the files, an output that would take an input's place or can't be
        written.
    """
    from tqdm import tqdm

    from jaxseg import figures
    from jaxseg.data import fitting

    lookup(ORIENTATIONS, orientation, "orientation of images")
    source_path, output_path = pathlib.Path(source), pathlib.Path(output)
    if source_path.is_dir():
        try:
            entries = sorted(source_path.iterdir())
        except OSError as error:
            raise UserError(f"--input={shown(source)} can't be read ({error.strerror})") from error
        files = [path for path in entries if not path.is_dir() and not path.name.startswith(".")]
    elif source_path.exists():
        files = [source_path]
    else:
        raise UserError(f"--input={shown(source)} is neither a file nor a folder")
    names = _names([path for path in files if _seems_an_image(path)])
    _check_outputs(names, output_path)
    predictor = _load(workdir, checkpoint, log)
    try:
        output_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={shown(output)} can't be made ({error.strerror}): choose another folder") from error
    log(f"step {predictor.step} of {shown(workdir)}; {len(files)} files of {shown(source)}")
    if window is None and (predictor.protocol.name != "whole" or not predictor.protocol.once):
        log(f"images are seen as the run was scored, {predictor.protocol.words}; --window=0: whole, at their own size")
    written, told, orientation, said = 0, [], orientation or predictor.orientation, {""}
    for path in tqdm(files, unit="image", disable=None):
        if path not in names:
            tqdm.write(f"{shown(path)} is no image that can be read: skipped", file=sys.stderr)
            continue
        try:
            image, picture = _read(path, orientation)
        except UserError as error:
            tqdm.write(printable(f"skipped: {error}"), file=sys.stderr)
            continue
        unlike = predictor.unlike_scoring(image.shape[:2], window)
        if unlike not in said:
            said.add(unlike)
            tqdm.write(unlike, file=sys.stderr)
        name = names[path]
        way = orientation if picture.header.orientation > 1 else ""
        told.append(fitting.facts(path.name, picture) | {"way": way})
        del picture
        preds = predictor(image, window=window)
        info = predictor.info
        try:
            write_palette_png(output_path / f"{name}.png", preds, info.palette)
            picture = figures.overlay_with_legend(image, preds, class_names=info.class_names, palette=info.palette)
            figures.write_png(output_path / f"{name}_overlay.png", picture)
        except OSError as error:
            made = shown(output_path / f"{name}.png")
            raise UserError(f"{made} can't be written ({error.strerror}): make room there") from error
        written += 1
    if not written:
        raise UserError(f"--input={shown(source)} holds no image: JPEG, PNG, TIFF, WebP and BMP are read")
    turned = [row for row in told if row["way"]]
    if turned:
        lie = "are turned as they are shown" if orientation == SHOWN else "are left as they are stored"
        log(f"{len(turned)} images with an orientation (EXIF or TIFF) {lie}")
    for line in fitting.remarks(told):
        log(line)
    skipped = len(files) - written
    log(f"{written} images to {shown(output)}" + (f", {skipped} files skipped" if skipped else ""))
    return written


def _seems_an_image(path: pathlib.Path) -> bool:
    """By its first bytes."""
    try:
        with open_regular(path) as file:
            return bool(kind_of(file.read(12)))
    except (UserError, OSError):
        return False


def _names(files: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """What the outputs of each file are called; files of one name and several kinds keep their kind but for one."""
    names: dict[pathlib.Path, str] = {}
    for path in files:
        names[path] = path.stem if path.stem not in names.values() else path.name
    return names


def _check_outputs(names: Mapping[pathlib.Path, str], folder: pathlib.Path) -> None:
    """Refuses outputs that would take the place of an input or of each other.

    Raises:
      UserError: names the files.
    """
    inputs, taken = {path.resolve() for path in names}, {}
    for path, name in names.items():
        for output in (f"{name}.png", f"{name}_overlay.png"):
            if (folder / output).resolve() in inputs:
                raise UserError(
                    f"{shown(folder / output)} is an input and would be overwritten: choose another --output"
                )
            if output in taken:
                raise UserError(
                    f"{shown(path)} and {shown(taken[output])} would both be written to {shown(output)}: rename one"
                )
            taken[output] = path


def main() -> None:
    """The command; a mistake of the user's ends in one message and status 1."""
    keep_streams()
    parser = Parser(
        "python -m jaxseg.predict",
        description="A trained run on images: JPEG, PNG, TIFF, WebP and BMP files of at most 2^28 pixels, or what the "
        "environment variable JAXSEG_MAX_PIXELS says. Of 16 bits the upper eight are taken, and alpha is left out.",
    )
    parser.add_argument("--workdir", required=True, help="the run to use: the --workdir of its training")
    parser.add_argument("--input", required=True, help="an image, or a folder of images")
    parser.add_argument("--output", required=True, help="the folder for NAME.png (class indices) and NAME_overlay.png")
    parser.add_argument("--checkpoint", default="best", help="best (by train.best, the default), latest or a step")
    parser.add_argument(
        "--window",
        type=int,
        help="pixels: images are seen at their own size, larger ones in windows of this side; 0: whole; by default "
        f"as the run was scored, but in windows of {WINDOW} where it was scored on whole images and a side is longer "
        f"than {LARGE}",
    )
    parser.add_argument(
        "--orientation",
        choices=(SHOWN, STORED),
        default="",
        help="shown: turned as EXIF or TIFF say; stored: as the pixels lie; by default as the run's data.orientation, "
        "shown unless that is stored",
    )
    parser.add_argument("--accept_edited", action="store_true", help=checksums.ACCEPT_EDITED)
    args = parser.parse_args()
    with one_line_errors(), checksums.accepting_edited(args.accept_edited):
        check_environment()
        use_compile_cache()
        predict_files(
            args.workdir,
            args.input,
            args.output,
            checkpoint=args.checkpoint,
            window=args.window,
            orientation=args.orientation,
        )


if __name__ == "__main__":
    main()
