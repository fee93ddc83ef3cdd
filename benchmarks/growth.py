"""Time and memory over sizes and batches: `python benchmarks/growth.py --model=deeplabv3plus --backbone=mobilenet_v2`.

A process a row, so that each one's memory is its own. Flags that are not known here go to `jaxseg.benchmark`.
"""

import argparse
import json
import subprocess
import sys


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=numbers, default=[128, 256, 512], help="%(default)s by default")
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8], help="%(default)s by default")
    arguments, words = parser.parse_known_args()
    print("| size | batch | ms a step | ms an image | images/s | GiB of the step | GiB of the process | compile, s |")
    print(f"|{'---:|' * 8}")
    for size in arguments.sizes:
        for batch in arguments.batches:
            command = [sys.executable, "-m", "jaxseg.benchmark", f"--size={size}", f"--batch={batch}", *words]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if run.returncode:
                sys.exit(run.returncode)
            figures = json.loads(run.stdout.splitlines()[-1])
            ours = figures["contenders"]["jaxseg"]
            cells = [f"{ours['step_ms']:.0f}", f"{ours['step_ms'] / batch:.1f}", f"{ours['images_per_second']:.1f}"]
            cells += [f"{n / 2**30:.2f}" for n in (ours["memory"], figures["peak_host_memory"])]
            print(f"| {size} | {batch} | {' | '.join(cells)} | {ours['compile_seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
