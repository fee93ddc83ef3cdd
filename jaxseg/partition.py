"""Functions of a batch that XLA can't divide among devices, or divides badly, computed by each on its part of it."""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def on_cpu(form: Callable, plain: Callable, *args: jax.Array, batched: Sequence[bool], summed: bool = False):
    """`form(*args)` on CPUs, by `by_batch`, and `plain(*args)`, which XLA divides, on all other devices; one array."""
    of_parts = functools.partial(by_batch, form, batched=batched, summed=summed)
    return jax.lax.platform_dependent(*args, cpu=of_parts, default=plain)


def by_batch(function: Callable, *args: jax.Array, batched: Sequence[bool], summed: bool = False) -> jax.Array:
    """`function(*args)` where the first axis of some arguments, `batched`, is the batch; one array.

    Each device computes it of its own images. The result has the batch as its first axis too, or with `summed` it is
    the sum over all images, which devices then exchange.
    """
    divided = custom_partitioning(lambda *args: function(*args))

    def partition(mesh, given, wanted):
        axes = next(a.sharding.spec[:1] for a, is_batch in zip(given, batched, strict=True) if is_batch)
        names = [name for axis in axes if axis for name in (axis if isinstance(axis, tuple) else (axis,))]
        part, whole = NamedSharding(mesh, PartitionSpec(*axes)), NamedSharding(mesh, PartitionSpec())

        def of_part(*args):
            y = function(*args)
            return jax.lax.psum(y, names) if summed and names else y

        return mesh, of_part, whole if summed else part, tuple(part if is_batch else whole for is_batch in batched)

    def rule(mesh, given, wanted):
        # Any axis but the batch is a factor of its own, which devices may not share.
        counter = itertools.count()

        def factors(kind, is_batch):
            return tuple("batch" if is_batch and i == 0 else f"axis{next(counter)}" for i in range(kind.rank))

        of_args = tuple(itertools.starmap(factors, zip(given, batched, strict=True)))
        of_result = factors(wanted[0], not summed)
        whole = tuple(name for name in itertools.chain(*of_args, of_result) if name != "batch")
        summed_over = ("batch",) if summed else ()
        return SdyShardingRule(of_args, (of_result,), reduction_factors=summed_over, need_replication_factors=whole)

    divided.def_partition(partition=partition, sharding_rule=rule)
    return divided(*args)
