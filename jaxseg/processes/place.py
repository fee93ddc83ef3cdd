"""Which process of how many this is: told by flags, or by what started it."""

import dataclasses
import os
import socket

from jaxseg.errors import UserError


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process of how many this is, and where process 0 is met."""

    coordinator: str
    num_processes: int
    process_id: int
    detected: bool = False  # told by what started the process, not by flags

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def place_from_flags(coordinator: str, num_processes: int, process_id: int) -> Place | None:
    """The place that the three flags name; None for one process, or where none of them is given ('', 0 and -1).

    Raises:
      UserError: some are given and others not, or they contradict each other.
    """
    given = {"--coordinator": bool(coordinator), "--num_processes": num_processes > 0, "--process_id": process_id >= 0}
    missing = [flag for flag, there in given.items() if not there]
    if len(missing) == 3 or (num_processes == 1 and process_id <= 0):
        return None
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given too: several processes need all of {', '.join(given)}")
    if process_id >= num_processes:
        raise UserError(f"--process_id={process_id} is beyond --num_processes={num_processes}: count from 0")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator} is no HOST:PORT, such as node1:1234")
    return Place(coordinator, num_processes, process_id)


def detect_place() -> Place | None:
    """The place that SLURM, Open MPI, Kubernetes or a TPU pod gave this process, as JAX reads it; None for one process.

    Raises:
      UserError: there is such a place, and it can't be read.
    """
    # What `jax.distributed.initialize` asks too; it has no public name, and that waits until all are there.
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        # Of any pod of Kubernetes JAX asks the API server; only one of an indexed job is one of several processes.
        alone = cluster.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ
        try:
            if alone or cluster.opt_in_only_method or not cluster.is_env_present():
                continue
            num_processes, process_id = cluster.get_process_count(), cluster.get_process_id()
            if num_processes == 1:
                return None
            port = os.environ.get("JAX_COORDINATOR_PORT")
            return Place(cluster.get_coordinator_address(60, port), num_processes, process_id, detected=True)
        except Exception as error:
            raise UserError(
                f"this seems to be a process of {cluster.__name__}, but its place can't be read ({error}): give "
                "--coordinator, --num_processes and --process_id"
            ) from error
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        raise UserError(
            "this is a pod of an indexed job, and its place can't be read without the kubernetes package: give "
            "--coordinator, --num_processes and --process_id, or --num_processes=1 if it is to train alone"
        )
    return None


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
