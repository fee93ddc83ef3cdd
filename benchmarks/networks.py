"""The tables of networks beside PyTorch, a process a row: `python benchmarks/networks.py [--mode=train] [NAME...]`.

On a GPU the rows are of 512x512, batch 32, bfloat16; on a CPU of 4x256x256, float32. NAMEs such as `unet-resnet18`
choose rows. Each row is printed as Markdown as soon as it is there, and its figures go as a line of JSON to --output;
rows that are there already are not run again. On a GPU

    python benchmarks/networks.py --check --forms=compiled --seconds=570 --output=gpu.jsonl

is all of the table within ten minutes: first every network's loss and gradients are held against those of the same
machine's CPU, then come the rows, the quickest to compile first; what does not fit is named at the end, and the same
command goes on with it.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

CPU_ROWS = (
    "deeplabv3plus-mobilenet_v2",
    "fpn-mobilenet_v2",
    "unet-resnet18",
    "deeplabv3plus-resnet50",
    "unet-vgg16_bn",
    "fcn-resnet50",
)
GPU_ROWS = (
    "unet-resnet18",
    "unet-vgg16_bn",
    "segnet-vgg16_bn",
    "pspnet-resnet50",
    "deeplabv3plus-resnet50",
    "fcn-resnet50",
    "deeplabv3-resnet101",
    "fpn-mobilenet_v2",
    "deeplabv3plus-mobilenet_v2",
)
ROW_SECONDS = 180  # after which a row is given up, on a GPU


def row(name: str, words: list[str], seconds: float | None) -> dict | None:
    """The figures of one network, None where its benchmark failed or took too long; its words go to standard error."""
    model, backbone = name.split("-")
    command = [sys.executable, "-m", "jaxseg.benchmark", f"--model={model}", f"--backbone={backbone}", *words]
    print("$", " ".join(command), file=sys.stderr, flush=True)
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as stopped:
        print(f"{(stopped.stdout or b'').decode()}\n{name} took more than {seconds:.0f} s", file=sys.stderr, flush=True)
        return None
    print(run.stdout, file=sys.stderr, flush=True)
    return json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else None


def differences(names: list[str]) -> None:
    """Prints, of every network, how far loss and gradients on this device are from a CPU's, on two small images."""
    import jax
    import jax.numpy as jnp

    from jaxseg.benchmark import networks, peers
    from jaxseg.losses import cross_entropy
    from jaxseg.models import create_model
    from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
    from jaxseg.state import init_variables
    from jaxseg.step import normalise

    # Small, for the CPU's sake.
    batch, device, cpu = networks.random_batch(2, (96, 96), 21), jax.devices()[0], jax.devices("cpu")[0]
    print(f"| network | loss, {device.device_kind} | a CPU's | largest difference of a gradient, by its largest |")
    print("|---|---:|---:|---:|")

    def value_and_grad(model, variables, images):
        def loss(params):
            images_in = normalise(images, IMAGENET_MEAN, IMAGENET_STD)
            variables_in = {**variables, "params": params}
            logits = model.apply(variables_in, images_in, train=False)
            return cross_entropy(logits, jnp.asarray(batch["labels"], jnp.int32))

        return jax.value_and_grad(loss)(variables["params"])

    for name in names:
        family, backbone = name.split("-")
        model, found = create_model(family, backbone=backbone, num_classes=21, **peers.OPTIONS.get(family, {})), []
        with jax.default_device(cpu):
            variables = init_variables(model, 0)
        for place in (device, cpu):
            inputs = jax.device_put((variables, batch["images"]), place)
            with jax.default_matmul_precision("highest"):
                loss, grads = jax.jit(value_and_grad, static_argnums=0)(model, *inputs)
            found.append((float(loss), jax.device_get(grads)))
        (loss, grads), (due, due_grads) = found
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(due_grads), strict=True)
        largest = max(float(abs(a - b).max() / max(abs(b).max(), 1e-30)) for a, b in pairs)
        print(f"| `{name}` | {loss:.6f} | {due:.6f} | {largest:.1e} |", flush=True)


def cells(name: str, figures: dict) -> list[str]:
    ours, *theirs = figures["contenders"].items()
    (_, ours), (form, theirs) = ours, (theirs or [("", {})])[0]
    times = figures.get("times_as_fast")
    memory = [f"{c['memory'] / 2**30:.1f}" if c.get("memory") else "" for c in (ours, theirs)]
    return [
        f"`{name}`",
        f"**{times['median']:.2f}** ({times['least']:.2f} to {times['most']:.2f})" if times else "",
        f"{ours['images_per_second']:.1f}",
        f"{theirs['images_per_second']:.1f}" if theirs else "",
        form.removeprefix("PyTorch "),
        f"{ours['compile_seconds']:.0f}",
        *memory,
        f"{100 * ours['share_of_matmul_rate']:.0f} %",
    ]


HEADER = (
    "network",
    "times as fast",
    "images/s",
    "PyTorch's",
    "its fastest form",
    "compile, s",
    "GiB",
    "PyTorch's",
    "share of matmul",
)


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--mode", choices=("train", "infer", "latency"), default="train")
    parser.add_argument("--output", type=pathlib.Path, help="a file of JSON lines, added to")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--forms", choices=("all", "eager", "compiled"), default="all", help="of PyTorch, to choose from"
    )
    parser.add_argument("--seconds", type=float, help="no row is begun that could end later than so many from now")
    parser.add_argument("--check", action="store_true", help="hold losses and gradients against a CPU's first")
    arguments = parser.parse_args()

    # This process only asks what there is; the rows, which come after, have the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    gpu = jax.default_backend() == "gpu"
    names = arguments.names or (GPU_ROWS if gpu else CPU_ROWS)
    if arguments.check:
        differences(names)
    asked = {"mode": arguments.mode, "size": 512 if gpu else 256, "dtype": "bfloat16" if gpu else "float32"}
    asked["batch"] = 1 if arguments.mode == "latency" else 32 if gpu else 4
    words = [f"--{name}={value}" for name, value in asked.items()] + [f"--rounds={arguments.rounds}"]
    beside = ["--against=torch", f"--forms={arguments.forms}"]
    done, missing = {}, []
    if arguments.output and arguments.output.exists():
        for line in arguments.output.read_text().splitlines():
            figures = json.loads(line)
            if {name: figures[name] for name in asked} == asked:
                done[f"{figures['model']}-{figures['backbone']}"] = figures
    print(f"| {' | '.join(HEADER)} |\n|---|{'---:|' * (len(HEADER) - 1)}", flush=True)
    for name in names:
        if name not in done:
            figures = None
            # Where PyTorch has it not, or fails, ours alone.
            for more in (beside, []):
                left = arguments.seconds - (time.monotonic() - started) if arguments.seconds else ROW_SECONDS
                if figures is None and left > 30:
                    limit = min(left, ROW_SECONDS) if gpu or arguments.seconds else None
                    figures = row(name, [*words, *more], limit)
            if figures is None:
                missing.append(name)
                continue
            done[name] = figures
            if arguments.output:
                with arguments.output.open("a") as lines:
                    lines.write(json.dumps(figures) + "\n")
        print(f"| {' | '.join(cells(name, done[name]))} |", flush=True)
    ratios = [done[name]["times_as_fast"]["median"] for name in names if "times_as_fast" in done.get(name, ())]
    if ratios:
        print(f"\nMedian {statistics.median(ratios):.2f}, least {min(ratios):.2f}.")
    if missing:
        print(f"\nMissing: {', '.join(missing)}.")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
