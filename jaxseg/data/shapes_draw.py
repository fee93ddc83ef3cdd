"""Draws the images of `shapes`, the generated data set: twelve kinds of textured shapes on textured ground.

A kind is a silhouette together with a texture. The two colours of a texture are drawn at random and the ground is drawn
from families of textures that the kinds use too, so that neither colour nor texture alone tells a kind: a heart, for
one, is a smooth gradient, often on a smooth gradient.

Geometry and textures are computed in integers, so that the bytes don't depend on a machine's floating point.
"""

from collections.abc import Callable

import cv2
import numpy as np

SIZE = 128
TRAIN = 2048
VAL = 64
IGNORE_LABEL = 255

CLASS_NAMES = (
    "background",
    "disc",
    "square",
    "triangle",
    "star",
    "ring",
    "cross",
    "hexagon",
    "crescent",
    "ellipse",
    "arrow",
    "heart",
    "diamond",
)

PALETTE = np.array(
    [
        (0, 0, 0),
        (230, 25, 75),
        (60, 180, 75),
        (255, 225, 25),
        (0, 130, 200),
        (245, 130, 48),
        (145, 30, 180),
        (70, 240, 240),
        (240, 50, 230),
        (170, 255, 60),
        (250, 190, 212),
        (0, 128, 128),
        (170, 110, 40),
    ],
    np.uint8,
)

# Fixed point: 1024 is one. Angles are steps of three degrees.
ONE = 1024
TURN = 120
COS = np.rint(ONE * np.cos(2 * np.pi * np.arange(TURN) / TURN)).astype(np.int32)
SIN = np.rint(ONE * np.sin(2 * np.pi * np.arange(TURN) / TURN)).astype(np.int32)

Outline = list[tuple[int, int]]
Pose = tuple[int, int, int]  # column and row of the centre, steps of the turn
Texture = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _regular(corners: int, radius: int = ONE, *, squash: int = ONE, shift: int = 0) -> Outline:
    steps = [TURN * corner // corners for corner in range(corners)]
    return [(int(COS[s]) * radius // ONE + shift, int(SIN[s]) * radius * squash // ONE**2) for s in steps]


def _star() -> Outline:
    outer, inner = _regular(5), _regular(10, ONE * 9 // 20)[1::2]
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _heart() -> Outline:
    points = []
    for step in range(0, TURN, 2):
        c, s = COS / ONE, SIN / ONE
        x = 16 * s[step] ** 3
        y = 13 * c[step] - 5 * c[2 * step % TURN] - 2 * c[3 * step % TURN] - c[4 * step % TURN]
        points.append((int(np.rint(x * ONE / 16)), int(np.rint((-y - 2.5) * ONE / 16))))
    return points


# Filled outlines and then outlines that are cut out, in units of the radius; the factor (1024 is one) on the radius
# evens out the areas, so that no class is rare.
SILHOUETTES: dict[str, tuple[list[Outline], list[Outline], int]] = {
    "disc": ([_regular(40)], [], 840),
    "square": ([_regular(4)], [], 1050),
    "triangle": ([_regular(3)], [], 1260),
    "star": ([_star()], [], 1290),
    "ring": ([_regular(40)], [_regular(40, 520)], 1000),
    "cross": (
        [[(-ONE, -330), (ONE, -330), (ONE, 330), (-ONE, 330)], [(-330, -ONE), (330, -ONE), (330, ONE), (-330, ONE)]],
        [],
        980,
    ),
    "hexagon": ([_regular(6)], [], 930),
    "crescent": ([_regular(40)], [_regular(40, 760, shift=500)], 1140),
    "ellipse": ([_regular(40, squash=500)], [], 1180),
    "arrow": (
        [[(ONE, 0), (0, -860), (0, -360), (-ONE, -360), (-ONE, 360), (0, 360), (0, 860)]],
        [],
        1120,
    ),
    "heart": ([_heart()], [], 1020),
    "diamond": ([[(ONE, 0), (0, -620), (-ONE, 0), (0, 620)]], [], 1290),
}


def _stripes(period: int) -> Texture:
    return lambda u, v, rng: 255 * (u % period < period // 2)


def _checks(cell: int) -> Texture:
    return lambda u, v, rng: 255 * ((u // cell + v // cell) % 2)


def _dots(period: int, radius_squared: int) -> Texture:
    half = period // 2
    return lambda u, v, rng: 255 * ((u % period - half) ** 2 + (v % period - half) ** 2 <= radius_squared)


def _circles(period: int) -> Texture:
    return lambda u, v, rng: 255 * (np.sqrt(u * u + v * v).astype(np.int32) % period < period // 2)


def _patches(cell: int) -> Texture:
    def texture(u, v, rng):
        values = rng.integers(0, 2, (64, 64)) * 255
        return values[u // cell % 64, v // cell % 64]

    return texture


def _rays(lines: int) -> Texture:
    def texture(u, v, rng):
        steps = range(0, TURN // 2, TURN // (2 * lines))
        return 255 * (sum((u * COS[step] + v * SIN[step] > 0).astype(np.int32) for step in steps) % 2)

    return texture


def _zigzag(period: int) -> Texture:
    return lambda u, v, rng: 255 * ((u + abs(v % (2 * period) - period)) % period < period // 2)


def _grid(period: int, line: int) -> Texture:
    return lambda u, v, rng: 255 * ((u % period < line) | (v % period < line))


def _gradient(length: int) -> Texture:
    return lambda u, v, rng: np.clip(128 + u * 255 // length, 0, 255)


def _plaid(period: int) -> Texture:
    return lambda u, v, rng: 128 * (u % period < period // 2) + 127 * (v % period < period // 2)


TEXTURES: dict[str, Texture] = {
    "disc": _stripes(4),
    "square": _stripes(12),
    "triangle": _checks(3),
    "star": _checks(7),
    "ring": _dots(7, 5),
    "cross": _circles(8),
    "hexagon": _patches(1),
    "crescent": _rays(10),
    "ellipse": _zigzag(8),
    "arrow": _grid(9, 2),
    "heart": _gradient(48),
    "diamond": _plaid(10),
}

GROUNDS: tuple[Texture, ...] = (
    _gradient(160),
    _gradient(320),
    _patches(2),
    _patches(12),
    _stripes(8),
    _stripes(24),
    _checks(16),
    _dots(16, 20),
)


def _two_colours(rng: np.random.Generator, nearest: int, farthest: int) -> np.ndarray:
    """Two random colours, int64 [2, 3], of a distance (the sum over the channels) in these bounds."""
    while True:
        colours = rng.integers(0, 256, (2, 3))
        if nearest <= abs(colours[0] - colours[1]).sum() <= farthest:
            return colours


def _paint(
    image: np.ndarray, where: np.ndarray, texture: Texture, rng: np.random.Generator, pose: Pose, colours: np.ndarray
) -> None:
    """Paints the texture, in two colours [2, 3], on the pixels `where` of `image` [128, 128, 3]."""
    x, y, step = pose
    rows, columns = np.nonzero(where)
    u = ((columns - x) * COS[step] + (rows - y) * SIN[step]) // ONE
    v = ((rows - y) * COS[step] - (columns - x) * SIN[step]) // ONE
    weights = texture(u, v, rng)[:, None]
    first, second = colours
    image[where] = (first * (255 - weights) + second * weights) // 255


def _silhouette(kind: str, pose: Pose, radius: int) -> np.ndarray:
    """Where the shape is, bool [128, 128]."""
    x, y, step = pose
    filled, cut, factor = SILHOUETTES[kind]
    inside = np.zeros((SIZE, SIZE), np.uint8)
    for value, outlines in ((1, filled), (0, cut)):
        for outline in outlines:
            points = np.array(outline, np.int64) * radius * factor // ONE
            turned = [points @ (COS[step], -SIN[step]), points @ (SIN[step], COS[step])]
            corners = np.stack(turned, 1) // ONE**2 + (x, y)
            cv2.fillPoly(inside, [corners.astype(np.int32)], value)
    return inside.astype(bool)


def _borders(objects: np.ndarray) -> np.ndarray:
    """The pixels on both sides of every edge between objects, bool, of the same shape."""
    down = objects[1:] != objects[:-1]
    right = objects[:, 1:] != objects[:, :-1]
    borders = np.zeros(objects.shape, bool)
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    return borders


def draw(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image `index` of the stream `seed`; a pure function of the two.

    Args:
      seed: at least 0; a split has its own.
      index: at least 0; any number of images can be drawn.

    Returns:
      The image, uint8 [128, 128, 3], RGB, and its labels, uint8 [128, 128]: indices into `CLASS_NAMES`, and 255
      (ignored) on the two pixels along the visible boundary of every object, as in VOC.

    Raises:
      ValueError: `seed` or `index` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index are at least 0, not {seed} and {index}")
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    image = np.zeros((SIZE, SIZE, 3), np.int64)
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    centre = (SIZE // 2, SIZE // 2, rng.integers(TURN))
    _paint(image, np.ones((SIZE, SIZE), bool), ground, rng, centre, _two_colours(rng, 60, 220))
    labels = np.zeros((SIZE, SIZE), np.uint8)
    objects = np.zeros((SIZE, SIZE), np.uint8)
    for number in range(1, rng.integers(2, 7) + 1):
        label = rng.integers(1, len(CLASS_NAMES))
        kind = CLASS_NAMES[label]
        radius = rng.integers(16, 31)
        step = rng.integers(TURN)
        # The place of two with less of other objects in it: objects overlap, but few are nearly covered.
        poses = [(*rng.integers(14, SIZE - 14, 2), step) for _ in range(2)]
        places = [_silhouette(kind, pose, radius) for pose in poses]
        pose, inside = min(zip(poses, places, strict=True), key=lambda place: (objects[place[1]] > 0).sum())
        _paint(image, inside, TEXTURES[kind], rng, pose, _two_colours(rng, 280, 765))
        labels[inside] = label
        objects[inside] = number
    labels[_borders(objects)] = IGNORE_LABEL
    image += rng.integers(-10, 11, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels
