"""A trained run on anybody's images: in Python by `load`, as a command by `python -m jaxseg.predict`."""

import argparse
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import checksums
from jaxseg import config as configs
from jaxseg.checkpoint import read_variables
from jaxseg.data import DataInfo
from jaxseg.data.headers import ORIENTATIONS, SHOWN, STORED, kind_of
from jaxseg.environment import check_environment
from jaxseg.errors import UserError, shown
from jaxseg.files import open_regular, replacing
from jaxseg.lookup import lookup
from jaxseg.process import one_line_errors, use_compile_cache
from jaxseg.protocols import from_config
from jaxseg.state import abstract_variables
from jaxseg.step import fill_colour, normalise
from jaxseg.streams import keep_streams, print_line
from jaxseg.windows import strips

WINDOWS = 4  # that go through the network at a time
LARGE, WINDOW = 2048, 1024  # pixels of a side: images with a larger one are seen in windows of the latter by default


class Predictor:
    """A trained network, called on images.

    Attributes:
      model: the network, see `jaxseg.create_model`.
      variables: what `model.apply` takes, `{'params', 'batch_stats'}`, float32.
      mean, std: by which `jaxseg.step.normalise` makes images of uint8 what the network takes.
      info: names and colours of the classes.
      step: of the checkpoint.
      orientation: 'shown' or 'stored', how images of its run lay where that was open, for `read_image`.
      size: (height, width) that images are brought to for the network, as its run was scored; None for their own.
    """

    def __init__(
        self,
        model,
        variables,
        info: DataInfo,
        step: int,
        mean,
        std,
        size: tuple[int, int] | None = None,
        orientation: str = SHOWN,
    ):
        self.info, self.step, self.size, self.orientation = info, step, size, orientation
        self.model, self.variables = model, variables
        self.mean, self.std, self._fill = tuple(mean), tuple(std), fill_colour(mean)

        def probabilities(variables, images):
            return jax.nn.softmax(model.apply(variables, normalise(images, mean, std), train=False))

        self._probs = jax.jit(probabilities)

        def preds(variables, images):
            probs = probabilities(variables, images)
            # The argmax of NaN is class 0; 255 is none.
            return jnp.where(jnp.isfinite(probs).all(-1), probs.argmax(-1), 255).astype(jnp.uint8)

        self._preds = jax.jit(preds)

    def __call__(self, image: np.ndarray, *, probabilities: bool = False, window: int | None = None) -> np.ndarray:
        """The class of every pixel of one image, at the image's own size.

        Args:
          image: uint8 `[H, W, 3]`, RGB, of any size.
          probabilities: whether to give these instead of the classes.
          window: pixels; a larger image is seen in square windows of this side, half a window from one to the next, and
            the probabilities of a pixel are the mean over its windows. Classes of images of any size then take the
            memory of a few windows. 0: the image is seen whole. None: it is brought to `size` and the probabilities
            back to the image's, bilinearly; without a `size` it is seen whole, in windows of 1,024 where a side has
            more than 2,048 pixels.

        Returns:
          uint8 `[H, W]` class indices, or float32 `[H, W, num_classes]` that add up to 1 over the classes.

        Raises:
          UserError: `image` is not uint8 `[H, W, 3]`, `window` is less than 32, or the network's probabilities of the
            image are not finite.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(f"the image is {image.dtype} {list(image.shape)}: uint8 [H, W, 3], RGB, is due")
        if window is None and self.size:
            return self._resized(image, probabilities)
        if window is None:
            window = WINDOW if max(image.shape[:2]) > LARGE else 0
        if window and window < 32:
            raise UserError(f"the window is {window} pixels: at least 32 are due, or 0 for the whole image")
        if window and max(image.shape[:2]) > window:
            return self._in_windows(image, window, probabilities)
        return self._whole(image, self._probs if probabilities else self._preds)

    def _whole(self, image: np.ndarray, run) -> np.ndarray:
        # Padded as evaluation pads it, which also keeps the number of compiled sizes down.
        height, width = image.shape[:2]
        padded = np.empty((1, -(-height // 32) * 32, -(-width // 32) * 32, 3), np.uint8)
        padded[...] = self._fill
        padded[0, :height, :width] = image
        return self._run(run, padded)[0, :height, :width]

    def _run(self, run, images: np.ndarray) -> np.ndarray:
        found = np.asarray(run(self.variables, images))
        if not (np.isfinite(found) if found.dtype != np.uint8 else found != 255).all():
            raise UserError(
                f"the network of step {self.step} gives this image logits that are not finite: "
                "choose another checkpoint, or train with a lower optim.learning_rate or with model.dtype float32"
            )
        return found

    def _resized(self, image: np.ndarray, probabilities: bool) -> np.ndarray:
        import cv2

        def to(size, array):
            return cv2.resize(array, size[::-1], interpolation=cv2.INTER_LINEAR)

        probs = self._whole(to(self.size, image), self._probs)
        # A class at a time: all of them at the size of a large image need not be held for the largest.
        of_classes = (to(image.shape[:2], np.ascontiguousarray(probs[..., c])) for c in range(probs.shape[-1]))
        if probabilities:
            return np.stack(list(of_classes), -1)
        largest = next(of_classes)
        preds = np.zeros(largest.shape, np.uint8)
        for label, of_class in enumerate(of_classes, 1):
            preds[of_class > largest] = label
            np.maximum(largest, of_class, out=largest)
        return preds

    def _in_windows(self, image: np.ndarray, window: int, probabilities: bool) -> np.ndarray:
        found = strips(
            lambda windows: self._run(self._probs, windows),
            [image],
            size=(window, window),
            stride=(window // 2, window // 2),
            batch_size=WINDOWS,
            fill=self._fill,
        )
        parts = (probs if probabilities else probs.argmax(-1).astype(np.uint8) for _, _, probs in found)
        return np.concatenate(list(parts))


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
    protocol = from_config(config.eval)
    size = protocol.size if protocol.name in ("resize", "resize_labels") else None
    orientation = ORIENTATIONS[config.data.orientation]
    return Predictor(model, variables, info, step, config.data.mean, config.data.std, size, orientation)


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
        raise UserError(f"--output={output} can't be made ({error.strerror}): choose another folder") from error
    log(f"step {predictor.step} of {workdir}; {len(files)} files of {shown(source)}")
    if predictor.size and window is None:
        height, width = predictor.size
        log(f"images are brought to {height}x{width}, as the run was scored; --window=0 for their own size")
    written, told, orientation = 0, [], orientation or predictor.orientation
    for path in tqdm(files, unit="image", disable=None):
        if path not in names:
            tqdm.write(f"{shown(path)} is no image that can be read: skipped", file=sys.stderr)
            continue
        try:
            image, picture = _read(path, orientation)
        except UserError as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            continue
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
    parser = argparse.ArgumentParser(
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
        help="pixels: larger images are seen in windows of this side; 0: whole; by default images are "
        f"brought to eval.size where the run was scored so, or else seen in windows of {WINDOW} where a side is longer "
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
