"""The tables of networks beside PyTorch, a process a row: `python benchmarks/networks.py [--mode=train] [NAME...]`.

On a GPU the rows are of 512x512, batch 32, bfloat16; on a CPU of 4x256x256, float32. NAMEs such as `unet-resnet18`
choose rows, for what has to fit into a few minutes. Markdown goes to the standard output, every row's figures as a line
of JSON to --output; rows that are there already are not run again.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

CPU_ROWS = (
    "deeplabv3plus-mobilenet_v2",
    "fpn-mobilenet_v2",
    "unet-resnet18",
    "deeplabv3plus-resnet50",
    "unet-vgg16_bn",
    "fcn-resnet50",
)
GPU_ROWS = (*CPU_ROWS, "segnet-vgg16_bn", "pspnet-resnet50", "deeplabv3-resnet101")


def row(name: str, words: list[str]) -> dict | None:
    """The figures of one network, None where its benchmark failed; what it says goes to the standard error."""
    model, backbone = name.split("-")
    command = [sys.executable, "-m", "jaxseg.benchmark", f"--model={model}", f"--backbone={backbone}", *words]
    print("$", " ".join(command), file=sys.stderr, flush=True)
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(run.stdout, file=sys.stderr, flush=True)
    return json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else None


def cells(name: str, figures: dict) -> list[str]:
    ours, theirs = figures["contenders"].values()
    times = figures["times_as_fast"]
    memory = [f"{c['memory'] / 2**30:.1f}" if c["memory"] else "" for c in (ours, theirs)]
    return [
        f"`{name}`",
        f"**{times['median']:.2f}** ({times['least']:.2f} to {times['most']:.2f})",
        f"{ours['images_per_second']:.1f}",
        f"{theirs['images_per_second']:.1f}",
        list(figures["contenders"])[1].removeprefix("PyTorch "),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--mode", choices=("train", "infer", "latency"), default="train")
    parser.add_argument("--output", type=pathlib.Path, help="a file of JSON lines, added to")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    arguments = parser.parse_args()

    # This process only asks what there is; the rows, which come after, have the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    gpu = jax.default_backend() == "gpu"
    words = ["--size=512", "--dtype=bfloat16"] if gpu else ["--size=256"]
    if arguments.mode != "latency":
        words += ["--batch=32"] if gpu else ["--batch=4"]
    words += [f"--mode={arguments.mode}", f"--rounds={arguments.rounds}", "--against=torch"]
    words += ["--eager"] * arguments.eager
    done = {}
    if arguments.output and arguments.output.exists():
        for line in arguments.output.read_text().splitlines():
            figures = json.loads(line)
            if figures["mode"] == arguments.mode:
                done[f"{figures['model']}-{figures['backbone']}"] = figures
    for name in arguments.names or (GPU_ROWS if gpu else CPU_ROWS):
        if name not in done:
            figures = row(name, words)
            if figures is None:
                continue
            done[name] = figures
            if arguments.output:
                with arguments.output.open("a") as lines:
                    lines.write(json.dumps(figures) + "\n")
    print(f"| {' | '.join(HEADER)} |\n|---|{'---:|' * (len(HEADER) - 1)}")
    for name, figures in done.items():
        print(f"| {' | '.join(cells(name, figures))} |")
    if done:
        ratios = [figures["times_as_fast"]["median"] for figures in done.values()]
        print(f"\nMedian {statistics.median(ratios):.2f}, least {min(ratios):.2f}.")


if __name__ == "__main__":
    main()
