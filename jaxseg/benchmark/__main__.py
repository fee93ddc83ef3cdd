"""The command line: `python -m jaxseg.benchmark --model=deeplabv3plus --backbone=mobilenet_v2 --against=torch`."""

import argparse
import json
import os
import pathlib
import statistics
import sys
from typing import Any

from jaxseg.environment import check_environment, find_devices
from jaxseg.errors import Parser, UserError
from jaxseg.process import one_line_errors, use_huge_pages
from jaxseg.streams import keep_streams

MODES = ("train", "infer", "latency", "input", "scaling")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `fields` are its --config.FIELD=VALUE. A wrong one ends in a message and status 2."""
    parser = Parser(
        prog="python -m jaxseg.benchmark",
        allow_abbrev=False,
        description="Time and memory of a network, or of the input pipeline, alone or in turns with PyTorch. "
        "The last line printed is JSON.",
    )
    network = parser.add_argument_group("what is measured, a network or a config's")
    network.add_argument("--model", help="the family, such as unet")
    network.add_argument("--backbone", help="its backbone, such as resnet18")
    network.add_argument(
        "--config", help="a file of configs/, with :ARGUMENT where it takes one; --config.FIELD=VALUE as in jaxseg.main"
    )
    network.add_argument("--classes", type=int, default=21, help="channels of the logits; %(default)s by default")
    network.add_argument("--size", type=int, help="pixels of a square image; 256 or the config's by default")
    network.add_argument("--batch", type=int, help="images a step; 4 or the config's by default, 1 for latency")
    network.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 or the config's by default")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="train",
        help="train: steps with Adam (default); infer: batches to logits; latency: one image at a time, median and "
        "95th percentile; input: batches of the config's data, with no network; scaling: what a step moves between "
        "devices, and what 8, 64 and 512 of them want of the network and the disk",
    )
    parser.add_argument(
        "--step_seconds", type=float, help="with --mode=scaling: of one device; measured here by default"
    )
    parser.add_argument(
        "--fsdp", action="store_true", help="with --mode=scaling: devices share weights and optimizer state"
    )
    parser.add_argument("--against", choices=("torch",), help="the same in PyTorch beside it, in turns, and the ratio")
    parser.add_argument(
        "--forms",
        choices=("all", "eager", "compiled"),
        default="all",
        help="with --against: those of PyTorch that the fastest is taken of: all (default), eager (torch.compile takes "
        "minutes), or compiled with channels last alone",
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="figures that the median is taken of; %(default)s by default"
    )
    parser.add_argument(
        "--profile", metavar="DIR", help="write a trace of a step there, and print its longest operations"
    )
    arguments, others = parser.parse_known_args(argv)
    arguments.fields = [word for word in others if word.startswith("--config.") and "=" in word]
    if len(others) > len(arguments.fields):
        parser.error(f"{' '.join(word for word in others if word not in arguments.fields)}: no such argument")
    if bool(arguments.config) == bool(arguments.model):
        parser.error("give --model and --backbone, or --config")
    if arguments.model and not arguments.backbone:
        parser.error("--model wants a --backbone")
    if arguments.mode == "input" and not arguments.config:
        parser.error("--mode=input wants a --config, whose data it reads")
    for name in ("classes", "size", "batch", "rounds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}: it must be at least 1")
    if arguments.step_seconds is not None and arguments.step_seconds <= 0:
        parser.error(f"--step_seconds is {arguments.step_seconds}: it must be more than 0")
    if arguments.mode != "scaling" and (arguments.fsdp or arguments.step_seconds):
        parser.error("--fsdp and --step_seconds want --mode=scaling; a config has train.fsdp")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    if arguments.against:
        # JAX takes three quarters of a GPU's memory at once unless it is told to leave room.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if arguments.mode == "input":
        from jaxseg.benchmark import pipeline

        result = pipeline.measure(
            _config(arguments), rounds=arguments.rounds, against_torch=bool(arguments.against), log=_say
        )
    elif arguments.mode == "scaling":
        result = measure_scaling(arguments)
    else:
        result = measure_network(arguments)
    print(json.dumps(result))


def measure_scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints what a step moves and the table over numbers of devices, and gives what is in them."""
    import jax

    # Before anything uses JAX: two devices to compile the step for.
    jax.config.update("jax_num_cpu_devices", 2)
    from jaxseg.benchmark import scaling
    from jaxseg.score import open_data

    what, model = _network(arguments)
    image_bytes, fsdp = 0.0, arguments.fsdp
    if arguments.config:
        config = _config(arguments)
        dataset, fsdp = open_data(config), fsdp or config.train.fsdp
        size = sum(path.stat().st_size for path in pathlib.Path(dataset.path).iterdir() if path.is_file())
        image_bytes = size / sum(dataset.lengths.values())
    _say(
        f"{what['model']} on {what['backbone']}, {what['batch']} images a device of {what['size']}, {what['dtype']}"
        + (", weights and optimizer state split" if fsdp else "")
    )
    given = ("config", "model", "backbone", "classes", "size", "batch", "dtype", "rounds")
    flags = [f"--{name}={value}" for name in given if (value := getattr(arguments, name)) is not None]
    seconds = arguments.step_seconds or scaling.step_seconds_of([*flags, *arguments.fields])
    return scaling.measure(model, what, step_seconds=seconds, image_bytes=image_bytes, fsdp=fsdp, log=_say)


def measure_network(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the table, and gives what is in it."""
    import jax
    import numpy as np

    from jaxseg.benchmark import networks, peers, profile
    from jaxseg.benchmark.measure import alternate, machine, matmul_rate, peak_host_memory, ratio
    from jaxseg.models.cost import multiply_adds

    what, model = _network(arguments)
    train, latency = arguments.mode == "train", arguments.mode == "latency"
    batch = networks.random_batch(what["batch"], (what["size"], what["size"]), what["classes"])
    _say(
        f"{what['model']} on {what['backbone']}, {what['batch']} x {what['size']}x{what['size']}, {what['dtype']}, "
        f"{arguments.mode}; {machine()}"
    )
    if train:
        ours, program = networks.training(model, batch, what.get("remat", False))
    else:
        ours, program = networks.inference(model, batch)
    contenders, block = [ours], 1 if latency else None
    if arguments.against:
        theirs = peers.fastest(
            what["model"],
            what["backbone"],
            batch,
            what["classes"],
            train=train,
            dtype=what["dtype"],
            log=_say,
            forms=peers.FORMS[arguments.forms],
            block=block,
        )
        contenders += [theirs] if theirs else []
    seconds = alternate(contenders, arguments.rounds, block)

    work = multiply_adds(model, (what["size"], what["size"])) * what["batch"] * (3 if train else 1)
    rate = matmul_rate(what["dtype"])
    result = {**what, "mode": arguments.mode, "machine": machine(), "jax": jax.__version__, "multiply_adds": work}
    result |= {"matmul_gmacs": rate / 1e9, "peak_host_memory": peak_host_memory(), "contenders": {}}
    for contender in contenders:
        median = statistics.median(seconds[contender.name])
        result["contenders"][contender.name] = {
            "compile_seconds": contender.compile_seconds,
            "step_ms": 1000 * median,
            "step_ms_p95": 1000 * float(np.percentile(seconds[contender.name], 95)),
            "images_per_second": what["batch"] / median,
            "memory": contender.memory,
            "share_of_matmul_rate": work / median / rate,
        }
    if len(contenders) > 1:
        median, least, most = ratio(seconds, ours.name, theirs.name)
        result["times_as_fast"] = {"median": median, "least": least, "most": most}
    _print_table(result)
    if arguments.profile:
        operations = profile.costliest(profile.trace(lambda: ours.run(1), arguments.profile), program())
        print(f"\ntrace written to {arguments.profile}; the longest operations of a step:")
        for op in operations:
            print(f"{op.milliseconds:9.2f} ms  x{op.calls:<5} {op.name:32.32} {op.shape:28.28} {op.origin[-80:]}")
    return result


def _network(arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """What is measured, and the network."""
    from jaxseg.benchmark import peers
    from jaxseg.models import create_model

    if arguments.config:
        return _network_of_config(arguments)
    what = {
        "model": arguments.model,
        "backbone": arguments.backbone,
        "classes": arguments.classes,
        "size": arguments.size or 256,
        "batch": arguments.batch or (1 if arguments.mode == "latency" else 4),
        "dtype": arguments.dtype or "float32",
    }
    model = create_model(
        arguments.model,
        backbone=arguments.backbone,
        num_classes=what["classes"],
        dtype=what["dtype"],
        **peers.OPTIONS.get(arguments.model, {}),
    )
    return what, model


def _network_of_config(arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from jaxseg import config as configs
    from jaxseg.data import data_info
    from jaxseg.data.transforms import as_pair

    if arguments.against:
        raise UserError("--against=torch compares networks as the libraries ship them: give --model and --backbone")
    config = _config(arguments)
    classes = data_info(config.data.name, config.data.version, config.data.dir).num_classes
    high, wide = as_pair(config.data.crop_size)
    if high != wide and arguments.mode != "scaling":
        raise UserError(f"data.crop_size is {(high, wide)}: networks are measured on square images, give --size=PIXELS")
    what = {
        "model": config.model.name,
        "backbone": config.model.backbone,
        "classes": classes,
        "size": high if high == wide else (high, wide),
        "batch": arguments.batch or (1 if arguments.mode == "latency" else config.data.batch_size),
        "dtype": config.model.dtype,
        "remat": config.train.remat,
    }
    return what, configs.build_model(config, classes)


def _config(arguments: argparse.Namespace):
    """The config that --config and --config.FIELD=VALUE say, read as `jaxseg.main` reads it."""
    from jaxseg import config as configs
    from jaxseg import main as command
    from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD

    command.parse(["jaxseg.benchmark", f"--config={arguments.config}", *arguments.fields])
    config = configs.with_normalisation(command.CONFIG.value, IMAGENET_MEAN, IMAGENET_STD)
    with config.unlocked():
        for field, value in (("crop_size", arguments.size), ("batch_size", arguments.batch)):
            config.data[field] = value or config.data[field]
        config.model.dtype = arguments.dtype or config.model.dtype
    return config


def _say(line: str) -> None:
    print(line, flush=True)


ROWS = {
    "compile and first step": ("compile_seconds", lambda x: f"{x:.1f} s"),
    "step, median": ("step_ms", lambda x: f"{x:.1f} ms"),
    "step, 95th percentile": ("step_ms_p95", lambda x: f"{x:.1f} ms"),
    "images a second": ("images_per_second", lambda x: f"{x:.1f}"),
    "memory of the device": ("memory", lambda x: f"{x / 2**30:.2f} GiB"),
    "share of the matmul rate": ("share_of_matmul_rate", lambda x: f"{100 * x:.1f} %"),
}


def _print_table(result: dict[str, Any]) -> None:
    contenders = result["contenders"]
    print(f"\n| | {' | '.join(contenders)} |\n|---|{'---:|' * len(contenders)}")
    for words, (key, form) in ROWS.items():
        cells = [form(values[key]) if values[key] is not None else "" for values in contenders.values()]
        print(f"| {words} | {' | '.join(cells)} |")
    print(
        f"\n{result['multiply_adds'] / 1e9:.2f} G multiply-adds a step; a square matrix product does "
        f"{result['matmul_gmacs']:.0f} G a second; the process took {result['peak_host_memory'] / 2**30:.1f} GiB"
    )
    if "times_as_fast" in result:
        times = result["times_as_fast"]
        print(f"jaxseg is {times['median']:.2f} times as fast ({times['least']:.2f} to {times['most']:.2f})")


if __name__ == "__main__":
    with one_line_errors():
        use_huge_pages(keep=True)
        keep_streams()
        check_environment()
        find_devices()
        main(sys.argv[1:])
