"""What a command does to its own process before it computes: memory pages and compiled programs."""

import os
import pathlib
import sys

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts the process anew with glibc asking for huge pages, where it can and does not yet.

    Every step on a CPU takes gigabytes of fresh memory; mapped in pages of 4 KiB that costs two fifths of the step. The
    setting is read when a process starts, hence to be called before anything heavy is imported.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    os.execv(sys.executable, sys.orig_argv)


def use_compile_cache() -> None:
    """Programs compiled once are read from the user's cache folder the next time; JAX's own settings go first."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(root, "jaxseg", "xla"))
