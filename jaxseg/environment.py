"""What a command asks of the environment that it is started in, so that a variable that is wrong ends in one line."""

import locale
import os
import subprocess
import sys

from jaxseg.errors import UserError, shown


def check_environment() -> None:
    """Refuses variables that would end the process in a traceback, or without a word; to be called first in a command.

    Starts the process anew in Python's UTF-8 mode where names and texts would be of another encoding (`LC_ALL=C` with
    `PYTHONUTF8=0`, an old locale): files are written and read back as UTF-8 everywhere.

    Raises:
      UserError: names the variable, its value and the remedy.
    """
    _use_utf8()
    _check_xla_flags()
    if any(name.startswith("JAX_") for name in os.environ):
        try:
            import jax  # noqa: F401
        except ValueError as error:
            raise UserError(f"a variable of JAX is refused: {shown(error)}; correct it or unset it") from error


def find_devices() -> None:
    """Asks for JAX's devices; processes that belong together have to have met before.

    Raises:
      UserError: there are none of the kind that `JAX_PLATFORMS` names, or they can't be used.
    """
    import jax

    try:
        jax.devices()
    # A kind without its plugin is an assertion of JAX's, a kind that there is not another error.
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        set_to = f"JAX_PLATFORMS is {shown(platforms)}" if platforms else "JAX_PLATFORMS is not set"
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"JAX finds no device to compute on ({shown(said[:300])}); {set_to}: set it to cpu, or install what the "
            "device needs, such as jax[cuda13]"
        ) from error


def _use_utf8() -> None:
    encodings = {sys.getfilesystemencoding(), locale.getencoding()}
    if sys.flags.utf8_mode or {name.lower().replace("-", "") for name in encodings} == {"utf8"}:
        return
    if os.environ.get("PYTHONUTF8") == "1":
        raise UserError(
            f"this Python reads and writes names as {' and '.join(sorted(encodings))} though PYTHONUTF8 is 1: start it "
            "without -X utf8=0, -E or -I"
        )
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, sys.orig_argv)


def _check_xla_flags() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if not flags.strip():
        return
    # XLA aborts the process at a flag that it does not know: another one asks it first.
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, errors="replace")
    if asked.returncode and "ModuleNotFoundError" not in asked.stderr:
        said = [line.rpartition("] ")[2] for line in asked.stderr.splitlines() if "] " in line]
        reason = f" ({shown(said[0][:300])})" if said else ""
        raise UserError(f"XLA_FLAGS is {shown(flags[:300])}, which XLA refuses{reason}: correct it or unset it")
