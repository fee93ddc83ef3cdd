"""A trained network, called on images: what `jaxseg.load` gives."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import protocols, views
from jaxseg.data import DataInfo
from jaxseg.data.headers import SHOWN
from jaxseg.errors import UserError
from jaxseg.step import fill_colour, normalise
from jaxseg.windows import stitched, strips

WINDOWS = 4  # that go through the network at a time
STRIP = 2**26  # probabilities that are brought to an image's size at a time
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
      protocol: how its run was scored, which is how images are seen.
    """

    def __init__(
        self,
        model,
        variables,
        info: DataInfo,
        step: int,
        mean,
        std,
        protocol: protocols.Protocol = protocols.WHOLE,
        orientation: str = SHOWN,
    ):
        self.info, self.step, self.protocol, self.orientation = info, step, protocol, orientation
        self.model, self.variables = model, variables
        self.mean, self.std, self._fill = tuple(mean), tuple(std), fill_colour(mean)

        def apply(variables, images):
            return model.apply(variables, images, train=False)

        def logits(variables, images):
            return apply(variables, normalise(images, mean, std))

        def preds(variables, images):
            found = logits(variables, images)
            # The argmax of NaN is class 0; 255 is none.
            return jnp.where(jnp.isfinite(found).all(-1), found.argmax(-1), 255).astype(jnp.uint8)

        def averaged(variables, seen, sizes, protocol, canvas):
            return views.mean_on_device(functools.partial(apply, variables), seen, sizes, canvas, protocol)

        def see(images, sizes, protocol):
            return views.on_device(normalise(images, mean, std), sizes, protocol)

        self._probs = jax.jit(lambda variables, images: views.softmax(logits(variables, images)))
        self._preds = jax.jit(preds)
        # Two programs, so that where images are brought to one size the network is compiled for that size alone.
        self._see = jax.jit(see, static_argnums=2)
        self._averaged = jax.jit(averaged, static_argnums=(3, 4))

    def __call__(self, image: np.ndarray, *, probabilities: bool = False, window: int | None = None) -> np.ndarray:
        """The class of every pixel of one image, at the image's own size.

        By default the image is seen as its run was scored, by the config's `eval.protocol`, scales and mirror images,
        and every pixel has the class that `--mode=eval` counts. There are three exceptions, see `unlike_scoring`: a
        run scored by resize_labels or center_crop compares at another size than the image's, and has the same classes
        for an image that has that size already; and of a run that is scored on whole images, an image with a side of
        more than 2,048 pixels is seen in windows of 1,024.

        Args:
          image: uint8 `[H, W, 3]`, RGB, of any size.
          probabilities: whether to give these instead of the classes.
          window: pixels; None for the protocol of the run. Else the image is seen once at its own size: in square
            windows of this side where it is larger, half a window from one to the next, and the probabilities of a
            pixel are the mean over its windows. Classes of images of any size then take the memory of a few windows.
            0: the image is seen whole.

        Returns:
          uint8 `[H, W]` class indices, or float32 `[H, W, num_classes]` that add up to 1 over the classes.

        Raises:
          UserError: `image` is not uint8 `[H, W, 3]`, or `window` is less than 32, or the network's logits of the image
            are not finite.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(f"the image is {image.dtype} {list(image.shape)}: uint8 [H, W, 3], RGB, is due")
        if window and window < 32:
            raise UserError(f"the window is {window} pixels: at least 32 are due, or 0 for the whole image")
        protocol = self._protocol(image.shape[:2], window)
        if protocol.name == "slide":
            parts = self._in_windows(image, protocol)
        elif protocol.name in protocols.FITTING:
            parts = self._fitted(image, protocol, probabilities)
        elif protocol.name == "resize":
            parts = self._back(self._mean(image, protocol), image.shape[:2])
        else:
            parts = [self._whole(image, protocol, probabilities)]
        return np.concatenate([part if part.ndim == 2 or probabilities else _classes(part) for part in parts])

    def unlike_scoring(self, shape: Sequence[int], window: int | None = None) -> str:
        """In what an image of `shape`, (height, width), is seen unlike its run was scored; '' where it is not."""
        size = "x".join(map(str, self.protocol.size))
        if window is not None:
            return f"not as the run was scored ({self.protocol.words}), but " + (
                f"in windows of {window} where a side is longer" if window else "whole, at their own size"
            )
        if self.protocol.name == "whole" and max(shape) > LARGE:
            return (
                f"images with a side of more than {LARGE} pixels are seen in windows of {WINDOW}; evaluation sees them "
                "whole, as --window=0 does"
            )
        if self.protocol.name == "resize_labels" and tuple(shape) != self.protocol.size:
            return f"images are brought to {size} and classes back to their own size; evaluation scores at {size}"
        if self.protocol.name == "center_crop" and tuple(shape) != self.protocol.size:
            return (
                f"the shorter side is brought to {self.protocol.size[0]} pixels, the image seen whole and classes "
                f"brought back to its own size; evaluation scores the square of {size} in the middle"
            )
        return ""

    def _protocol(self, shape: Sequence[int], window: int | None) -> protocols.Protocol:
        protocol = self.protocol
        if window is not None:
            protocol = dataclasses.replace(protocols.WHOLE, multiple=protocol.multiple)
        elif protocol.name == "whole" and max(shape) > LARGE:
            window = WINDOW
        if window and max(shape) > window:
            sides = {"size": (window, window), "stride": (window // 2, window // 2)}
            protocol = dataclasses.replace(protocol, name="slide", **sides)
        return protocol

    def _padded(self, image: np.ndarray, multiple: int) -> np.ndarray:
        """`[1, H, W, 3]`, as evaluation pads it, which also keeps the number of compiled sizes down."""
        height, width = image.shape[:2]
        padded = np.empty((1, -(-height // multiple) * multiple, -(-width // multiple) * multiple, 3), np.uint8)
        padded[...] = self._fill
        padded[0, :height, :width] = image
        return padded

    def _whole(self, image: np.ndarray, protocol: protocols.Protocol, probabilities: bool) -> np.ndarray:
        """The classes, or the probabilities, of an image at its own size."""
        height, width = image.shape[:2]
        if protocol.averages:
            return self._mean(image, protocol)[0, :height, :width]
        run = self._probs if probabilities else self._preds
        padded = self._padded(image, 1 if protocol.name in protocols.FITTING else protocol.multiple or 32)
        return self._finite(run(self.variables, padded))[0, :height, :width]

    def _mean(self, image: np.ndarray, protocol: protocols.Protocol) -> jax.Array:
        """Probabilities averaged over scales and mirror images, at the size that images are seen at."""
        fitted = protocol.name in protocols.FITTING
        padded, sizes = self._padded(image, 1 if fitted else protocol.multiple or 32), np.array([image.shape[:2]])
        canvas = protocol.size if protocol.name != "whole" else padded.shape[1:3]
        probs = self._averaged(self.variables, self._see(padded, sizes, protocol), sizes, protocol, canvas)
        height, width = image.shape[:2] if protocol.name == "whole" else canvas
        self._finite(probs[0, :height, :width])
        return probs

    def _finite(self, found: jax.Array) -> np.ndarray:
        """`found`, classes or probabilities, on the host.

        Raises:
          UserError: the logits that they are of are not finite.
        """
        found = np.asarray(found)
        if not (np.isfinite(found) if found.dtype != np.uint8 else found != 255).all():
            raise UserError(
                f"the network of step {self.step} gives this image logits that are not finite: "
                "choose another checkpoint, or train with a lower optim.learning_rate or with model.dtype float32"
            )
        return found

    def _fitted(self, image: np.ndarray, protocol: protocols.Protocol, probabilities: bool):
        from jaxseg.data import transforms

        shape = image.shape[:2]
        size = protocol.size if protocol.name == "resize_labels" else protocols.shorter_side_at(shape, protocol.size[0])
        image, _ = transforms.resize(image, image[..., 0], size)
        if size != protocol.size:  # a crop, that would be none
            protocol = dataclasses.replace(protocol, name="whole", size=(0, 0))
        if size == shape:
            return [self._whole(image, protocol, probabilities)]
        return self._back(jnp.asarray(self._whole(image, protocol, True))[None], shape)

    def _back(self, probs: jax.Array, shape: tuple[int, int]) -> Iterator[np.ndarray]:
        multiple = self.protocol.multiple or 32
        height, width = (-(-side // multiple) * multiple for side in shape)
        return views.in_strips(probs, shape, (height, width), STRIP)

    def _in_windows(self, image: np.ndarray, protocol: protocols.Protocol) -> Iterator[np.ndarray]:
        shape = image.shape[:2]
        how = {
            "size": protocol.size,
            "stride": protocol.stride,
            "batch_size": views.rows_of_windows(views.number_of_windows(shape, protocol), WINDOWS),
            "fill": self._fill,
        }

        def run(windows):
            return self._finite(self._probs(self.variables, windows))

        if protocol.once:
            return (probs for _, _, probs in strips(run, [image], **how))
        return iter([views.mean_on_host(stitched(run, views.on_host(image, protocol), **how), shape, protocol)])


def _classes(probs: np.ndarray) -> np.ndarray:
    return np.asarray(probs).argmax(-1).astype(np.uint8)
