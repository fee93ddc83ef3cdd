"""Random changes of a config, and a process that trains what is accepted of them; see test_fuzz_config.py.

    python tests/fuzz/config_cases.py DATA WORK SEED FIRST COUNT

prints a line of JSON a case: its number, what came of it, what was said, and the fields that were changed.
"""

import json
import math
import os
import pathlib
import random
import shutil
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]

NUMBERS = [
    *(0, -1, 1, 2, 3, 5, 32, 33, 64, 100, 1000, 0.5, 1.5, -0.5, 0.1, 0.01, 0.9, 0.999, 1.0, 2.0, 10.0),
    *(1e-300, 1e-30, 1e-8, 1e-6, 1e4, 1e6, 1e30, 1e308, math.inf, -math.inf, math.nan),
    *(10**4, 10**6, 10**9, 2**16, 2**31 - 1, 2**31, 2**32, 2**64, 10**30),
]
OTHERS = [
    *(None, True, False, "", "abc", "nan", "１６", "16", "\x1b[2J", "a\0b", "x" * 300, "x" * 5000, "straße", "\ud800"),
    *((), (1,), (1, 2), (2, 1), (0.5, 2.0), (32, 32), (32, 64), (1, 1), (10**6, 10**6), (-1, 2, 3), (1.5, 2, 3)),
    *(("a",), ("a", "b"), (1, 1, 1), (0.5,) * 3, (0.0,) * 3, (math.nan,) * 3, (1e-30, 1, 1), ((1, 2), (3, 4)), (None,)),
    *(("flip",), ("flip", "flip"), ("identity", "rotate90"), (1e-300, 1e300), (1000, 1000), tuple(range(1, 40))),
]
WORDS = {
    "data.name": ("camvid", "voc", "shapes", "folder"),
    "model.dtype": ("bfloat16", "float32", "float16"),
    "optim.name": ("adam", "adamw", "sgd"),
    "optim.schedule": ("constant", "poly", "cosine", "plateau"),
    "eval.protocol": ("whole", "resize", "resize_labels", "center_crop", "slide"),
    "eval.published": ("a", "b", "c", "d", "e"),
    "eval.split": ("train", "val", "test"),
    "loss.class_weights": (
        "median_frequency",
        "1,2,3",
        ",".join(["1"] * 11),
        ",".join(["0"] * 10 + ["1"]),
        "1e-300",
        "１",
    ),
    "train.best": ("loss", "mean_iou", "iou/0", "boundary_f1"),
    "data.crop_size": (32, 48, (32, 64), 64, 128),
    "data.scale": ((0.5, 2.0), (0.01, 10), (10, 10), (0.01, 0.01)),
    "data.resize": ((32, 32), (64, 48)),
    "eval.size": ((32,), (64, 32), (31,)),
    "eval.scales": ((0.5, 1.0), (0.0625,), (8,)),
    "data.workers": (0, 1),
    "data.variants": (("flip", "vertical_flip"), ("grid_distortion",), ("identity",) * 2),
}
# Small forms of every family, and options that other values are tried for.
SMALL = [
    *([("unet", "plain", {"width": 4, "depth": 1, "convs": 1, "dropout": 0.1})] * 3),
    ("segnet", "basic", {"features": 4, "depth": 1, "kernel_size": 3}),
]
# These take long to compile.
LARGE = [
    ("segnet", "constant", {"width": 4}),
    ("unet", "mobilenet_v3_small", {"features": (8, 8, 8, 8, 8)}),
    ("deeplabv3plus", "mobilenet_v3_small", {"features": 8, "rates": (1,), "dropout": 0.1}),
    ("deeplabv3", "mobilenet_v3_small", {"features": 8, "rates": (1,), "depth": 3}),
    ("pspnet", "mobilenet_v3_small", {"features": 8, "bins": (1, 2), "kernel_sizes": (1, 3)}),
    ("fpn", "mobilenet_v3_small", {"features": 32, "pyramid_features": 8}),
    ("fcn", "vgg16", {"width": 8}),
    ("unet_pix2pix", "mobilenet_v3_small", {"features": (8, 8, 8, 8)}),
    ("segnet", "vgg16_bn", {}),
]
OPTIONS = {
    "model.options": (
        *(
            "features",
            "width",
            "depth",
            "dropout",
            "rates",
            "bins",
            "kernel_sizes",
            "kernel_size",
            "convs",
            "batch_norm",
        ),
        *("upsampling", "up_kernel_size", "conv_bias", "separable", "aux_head", "norm", "merge", "finest", "stride"),
        *("num_classes", "name", "nonsense", "a.b"),
    ),
    "model.backbone_options": ("epsilon", "momentum", "dilate_first_block", "width", "first_block_features", "blocks"),
}
OPTION_WORDS = (True, False, "transposed", "nearest", "bilinear", "group", "batch", "cat", "add", 1, 2, 8, (1, 2, 3))


def case(number: int, seed: int, fields: dict) -> tuple[tuple, dict]:
    """The network of a case, and its changes: field to value."""
    rng = random.Random(f"{seed} {number}")
    network, changes = rng.choice(LARGE if rng.random() < 0.06 else SMALL), {}
    gentle = rng.random() < 0.1  # values that may well be taken
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        group = rng.choice([None] * 5 + list(OPTIONS))
        if group:
            field = (
                f"{group}.{rng.choice([*OPTIONS[group], *network[2]] if group == 'model.options' else OPTIONS[group])}"
            )
            changes[field] = rng.choice([rng.choice(NUMBERS), rng.choice(OTHERS), rng.choice(OPTION_WORDS)])
            continue
        field = rng.choice(list(fields))
        likely = WORDS.get(field) or ((True, False) if isinstance(fields[field], bool) else NUMBERS)
        numeric = isinstance(fields[field], int | float) and not isinstance(fields[field], bool)
        if gentle:
            value = fields[field]
            near = [0, value, value * 2, value + 1, value / 2] if isinstance(value, float) else [0, value, 1, 2, 3, 4]
            changes[field] = rng.choice(near if numeric else likely)
            continue
        pools = [likely, likely, NUMBERS if numeric else OTHERS, OTHERS]
        changes[field] = rng.choice(rng.choice(pools))
    return network, changes


class Done(Exception):
    """Two steps are taken."""


def run(number: int, seed: int, data: pathlib.Path, work: pathlib.Path) -> dict:
    """What came of a case: refused, trained, not finite, or a traceback; in Python, or as JSON has it."""
    import helpers
    import jax
    from ml_collections import ConfigDict

    from configs import default
    from jaxseg import build
    from jaxseg.config import flatten
    from jaxseg.errors import UserError
    from jaxseg.train import train

    network, changes = case(number, seed, flatten(default.get_config()))
    config = helpers.tiny_config(data)
    config.model.name, config.model.backbone, options = network
    config.train.num_steps, config.train.log_every, config.train.eval_every = 2, 1, 0
    tree = config.to_dict()
    tree["model"]["options"] = dict(options)
    for field, value in changes.items():
        *groups, name = field.split(".")
        group = tree
        for word in groups:
            group = group.setdefault(word, {}) if isinstance(group, dict) else {}
        group[name] = value
    made = build.create_steps
    losses = []

    def create_steps(*arguments, **keywords):
        steps = made(*arguments, **keywords)
        take = steps.train

        def step(state, batch):
            state, values = take(state, batch)
            losses.append(float(values["loss"]))
            # One in ten goes on to the evaluation and the saving at its end.
            if len(losses) == 2 and number % 10:
                raise Done
            return state, values

        steps.train = step
        return steps

    started, said = time.time(), ""
    try:
        if number % 2:
            tree = json.loads(json.dumps(tree))
        build.create_steps = create_steps
        train(ConfigDict(tree), work / "run", log=lambda line: None)
        outcome = "trained"
    except Done:
        outcome = "trained"
    except UserError as error:
        outcome, said = "refused", str(error)
        words = {word for field in changes for word in (field, field.rpartition(".")[2])}
        if not any(word in said for word in words):
            outcome = "refused without its name"
        if "\n" in said:
            outcome = "refused in several lines"
        if said.startswith("the loss of step"):
            outcome = "not finite"
    except BaseException as error:
        outcome, said = "traceback", f"{type(error).__name__}: {error}"
    finally:
        build.create_steps = made
        shutil.rmtree(work / "run", ignore_errors=True)
        jax.clear_caches()
    if outcome == "trained" and not all(map(math.isfinite, losses)):
        outcome, said = "not finite", str(losses)
    text = {field: repr(value)[:60] for field, value in changes.items()}
    took = round(time.time() - started, 1)
    return {"number": number, "outcome": outcome, "said": said[:400], "of": network[:2], "changes": text, "took": took}


def main(data: str, work: str, seed: str, first: str, count: str) -> None:
    import resource

    gigabytes = int(os.environ.get("FUZZ_GIB", "16")) * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (gigabytes, gigabytes))
    import helpers

    from jaxseg import writers

    writers._event_writer = lambda directory: helpers._NoEvents()
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps(run(number, int(seed), pathlib.Path(data), pathlib.Path(work))), flush=True)


if __name__ == "__main__":
    sys.path[:0] = [os.environ.get("FUZZ_ROOT", str(ROOT)), os.environ.get("FUZZ_ROOT", str(ROOT)) + "/tests"]
    main(*sys.argv[1:])
