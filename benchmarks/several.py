"""Two processes over one, a core each, beside PyTorch's DDP: `benchmarks/several.py --config=FILE --against=torch`.

Images a second of training with input and checkpoints on, from step 30 to the last, at the same global batch, in turns.
PyTorch is SMP's network under DistributedDataParallel with Gloo, on the same records, augmented in the same way by a
worker process of each rank. Its BatchNorm is that of each rank alone: the synchronised one wants a GPU.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from jaxseg.processes.place import free_port

FIRST = 30  # steps before the clock starts; the first checkpoint is among them, with what is compiled for it
CHECKPOINT_EVERY = 20


def start(command: list[str], core: int) -> subprocess.Popen:
    """The command on one core."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {core})
    return process


def ours(config: list[str], num_processes: int, steps: int) -> float:
    """Images a second of `jaxseg.main`."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*config, f"--workdir={folder}/run", "--config.train.num_epochs=0", f"--config.train.num_steps={steps}"]
        flags += [f"--config.train.checkpoint_every={CHECKPOINT_EVERY}", "--config.train.eval_every=0"]
        flags += ["--config.train.log_every=10", f"--coordinator=localhost:{free_port()}"]
        flags += [f"--num_processes={num_processes}"]
        command = [sys.executable, "-m", "jaxseg.main", *flags]
        processes = [start([*command, f"--process_id={i}"], core) for i, core in enumerate(cores(num_processes))]
        passed = {}
        for line in processes[0].stdout:
            if found := re.match(r"step (\d+)/", line):
                passed[int(found[1])] = time.perf_counter()
        if any(process.wait() for process in processes):
            sys.exit("a run failed, see above")
        batch = json.loads(pathlib.Path(folder, "run", "config.json").read_text())["data"]["batch_size"]
        return batch * (steps - FIRST) / (passed[steps] - passed[FIRST])


def theirs(config: list[str], num_processes: int, steps: int) -> float:
    """Images a second of PyTorch's DDP."""
    command = [sys.executable, __file__, *config, f"--steps={steps}", f"--ranks={num_processes}"]
    command.append(f"--port={free_port()}")
    processes = [start([*command, f"--rank={i}"], core) for i, core in enumerate(cores(num_processes))]
    out = processes[0].communicate()[0]
    if any(process.wait() for process in processes):
        sys.exit("a run of PyTorch failed, see above")
    return float(out.splitlines()[-1])


def cores(num_processes: int) -> list[int]:
    there = sorted(os.sched_getaffinity(0))
    if len(there) < num_processes:
        sys.exit(f"{num_processes} cores are due, there are {len(there)}")
    return there[:num_processes]


def train_in_torch(config_flags: list[str], rank: int, ranks: int, port: int, steps: int) -> None:
    """What a rank does; the first prints its images a second."""
    import torch
    import torch.distributed
    from torch.nn.parallel import DistributedDataParallel

    from jaxseg import build
    from jaxseg import main as command
    from jaxseg.benchmark import peers
    from jaxseg.benchmark.pipeline import TorchDataset
    from jaxseg.config import with_normalisation
    from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
    from jaxseg.score import open_data

    command.parse(["several", *config_flags])
    config = with_normalisation(command.CONFIG.value, IMAGENET_MEAN, IMAGENET_STD)
    torch.set_num_threads(1)
    store = {"init_method": f"tcp://localhost:{port}", "world_size": ranks, "rank": rank}
    torch.distributed.init_process_group("gloo", **store)
    dataset = open_data(config)
    records = TorchDataset(dataset.source(dataset.train_split), build.augmentation(config))
    sampler = torch.utils.data.DistributedSampler(records, ranks, rank)
    batch_size = config.data.batch_size // ranks
    workers = {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}
    loader = torch.utils.data.DataLoader(records, batch_size, sampler=sampler, drop_last=True, **workers)
    network = peers.NETWORKS[config.model.name](config.model.backbone, dataset.info.num_classes)
    network = DistributedDataParallel(network.to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    step, started = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        while step < steps:
            for batch in loader:
                images = (batch["images"].permute(0, 3, 1, 2).float() / 255 - mean) / std
                images = images.contiguous(memory_format=torch.channels_last)
                logits = network(images)
                loss = torch.nn.functional.cross_entropy(logits, batch["labels"].long(), ignore_index=255)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if rank == 0 and step % CHECKPOINT_EVERY == 0:
                    torch.save([network.state_dict(), optimizer.state_dict()], f"{folder}/checkpoint")
                if step == FIRST:
                    started = time.perf_counter()
                if step == steps:
                    break
    if rank == 0:
        print(config.data.batch_size * (steps - FIRST) / (time.perf_counter() - started), flush=True)
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--against", choices=("torch",))
    for name in ("rank", "ranks", "port"):  # of a process that this script starts itself
        parser.add_argument(f"--{name}", type=int, default=-1, help=argparse.SUPPRESS)
    given, config = parser.parse_known_args()
    if given.rank >= 0:
        train_in_torch(config, given.rank, given.ranks, given.port, given.steps)
        return
    forms = {"jaxseg": ours, **({"PyTorch DDP": theirs} if given.against else {})}
    rates = {(name, count): [] for name in forms for count in (1, 2)}
    for _ in range(given.rounds):
        for (name, count), found in rates.items():
            found.append(forms[name](config, count, given.steps))
            print(f"{name}, {count} process{'es' * (count > 1)}: {found[-1]:.2f} images a second", flush=True)
    for name in forms:
        ratios = [two / one for one, two in zip(rates[name, 1], rates[name, 2], strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{name}: 2 processes are {statistics.median(ratios):.2f} times as fast as 1 ({each})")


if __name__ == "__main__":
    main()
