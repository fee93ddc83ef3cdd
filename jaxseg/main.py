"""The command line: `python -m jaxseg.main --config=configs/quickstart.py`.

SIGTERM, Ctrl-C and a terminal that is closed (not under nohup) save a run and end it, with status 128 and the signal's
number; a second signal changes nothing, a third, more than a second after the first, ends it at once without saving. A
standard output or error that is closed, full or not read ends nothing.
"""

import contextlib
import inspect
import itertools
import logging as stdlib_logging
import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jaxseg import checksums, fields
from jaxseg.environment import check_environment
from jaxseg.errors import UserError, shown
from jaxseg.lookup import nearest
from jaxseg.process import Interrupted, ignore_signals, one_line_errors, use_compile_cache, use_huge_pages
from jaxseg.processes import together
from jaxseg.processes.facts import Facts, code_facts
from jaxseg.processes.group import Group
from jaxseg.processes.place import Place, detect_place, place_from_flags
from jaxseg.streams import keep_streams, print_line

# Configs of a checkout import each other as `configs.default`, from wherever the command is given.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="A file of configs/, with `:ARGUMENT` where it takes one; any field is a flag, --config.A.B=... "
    "(configs/default.py says what each means, jaxseg/fields.py what it may be)",
    # `check_config` knows which fields there are; options of a network need not stand in the config.
    lock_config=False,
    accept_new_attributes=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where checkpoints, metrics and figures go; by default runs/ and the config's name."
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train, or score a checkpoint of a run and print the table per class."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "With --mode=eval: best, latest or a step.")
SPLIT = flags.DEFINE_string(
    "split",
    "",
    "With --mode=eval: the split to score, all of the data that is needed; by default the data set's own choice.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "With several processes: HOST:PORT of process 0, the same for all; who connects there and does not know what "
    "process 0 wrote into the workdir, which all share, is turned away. SLURM, Open MPI, Kubernetes and TPU pods tell "
    "this and the two below by themselves.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "With several processes: how many.")
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "With several processes: which one this is, from 0.")
START_TIMEOUT = flags.DEFINE_float("start_timeout", 50.0, "With several processes: seconds that all have to come.")
SILENCE_TIMEOUT = flags.DEFINE_float(
    "silence_timeout", 120.0, "With several processes: seconds that one may be silent before the run ends."
)
BEST_IF_DAMAGED = flags.DEFINE_bool(
    "best_if_damaged",
    False,
    "Go on from the best checkpoint where the latest is damaged or was moved away; without it such a run is refused.",
)
flags.DEFINE_bool("accept_edited", False, checksums.ACCEPT_EDITED)
SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "FIELD=VALUE,VALUE,... such as train.seed=0,1,2: a run with each value, one after another, in workdirs under "
    "--workdir, and a table of them in the end; given again for another field, every combination.",
)


# Flags that are numbers.
NUMBERS = ("num_processes", "process_id", "start_timeout", "silence_timeout")


def default_workdir(config_flag: str) -> str:
    """`configs/deeplab.py:resnet50,voc` -> `runs/deeplab-resnet50-voc`."""
    path, _, argument = config_flag.partition(":")
    return os.path.join("runs", "-".join([pathlib.Path(path).stem, *filter(None, argument.split(","))]))


def parse(argv: list[str]) -> list[str]:
    """The command line, read by absl.

    Raises:
      UserError: a flag, a config or a field that there is not, or a value of the wrong kind; with the nearest names.
    """
    words = _words(argv[1:])
    check_words(words)
    if words.get("mode") == "eval" and "sweep" in words:
        raise UserError("--sweep trains: leave --mode=eval out, or --sweep")
    if words.get("mode") == "eval" and words.get("workdir") and not words.get("config"):
        from jaxseg import config

        words["config"] = f"{config.__file__}:{words['workdir']}"
        argv = [argv[0], f"--config={words['config']}", *argv[1:]]
    accept = words.get("accept_edited", "false") not in ("false", "False", "0")
    # For as long as the command runs, and from before its config is read, which may be a run's.
    checksums.accepting_edited(accept).__enter__()
    if not {"help", "helpfull", "helpshort", "h", "?"} & set(words):
        check_config(words.get("config", ""), [word for word in words if word.startswith("config.")])
    try:
        return app.parse_flags_with_usage(argv) if "help" in words else flags.FLAGS(argv)
    except Exception as error:  # absl's flags raise what the field's own type does
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(shown(said if len(said) <= 500 else f"{said[:500]}...")) from error


def _words(arguments: list[str]) -> dict[str, str]:
    """Flag to value, `--flag=value` or `--flag value`."""
    words = {}
    for word, following in itertools.pairwise([*arguments, ""]):
        if word.startswith("-"):
            flag, equals, value = word.lstrip("-").partition("=")
            words[flag] = value if equals or following.startswith("-") else following
    return words


def check_words(words: Mapping[str, str]) -> None:
    """Refuses numbers in other digits than 0 to 9, which Python would read, and paths that no file system has.

    Raises:
      UserError: names the flag.
    """
    texts = (fields.Text, fields.Path, fields.Name)
    numbers = {f"config.{name}" for name, kind in fields.FIELDS.items() if not isinstance(kind, texts)}
    for word, value in words.items():
        if not value.isascii() and word in (*numbers, *NUMBERS):
            raise UserError(f"--{word} is {fields.shown_value(value)}: write numbers in the digits 0 to 9")
    for word in ("config", "workdir"):
        fields.check(f"--{word}", fields.Path(), words.get(word, ""))


def check_config(config_flag: str, overrides: list[str]) -> None:
    """Refuses a config file that there is not, an argument that it can't take and overrides of no field of it.

    Absl's own errors for these are pages long, and for a mistyped field they don't say which flag it was.

    Raises:
      UserError: with the nearest names.
    """
    from jaxseg.config import flatten

    path, _, argument = config_flag.partition(":")
    if not path:
        raise UserError("--config is missing, for example --config=configs/quickstart.py; --help tells the rest")
    if not os.path.isfile(path):
        near = sorted(str(name) for name in pathlib.Path(os.path.dirname(path) or ".").glob("*.py"))
        raise UserError(f"there is no config file {shown(path)}: {nearest(path, near) if near else 'give its path'}")
    if not path.endswith(".py"):
        raise UserError(f"{shown(path)} is no config: that is a .py file with a function get_config")
    with _one_line_in(path):
        get_config = runpy.run_path(path).get("get_config")
        takes_argument = bool(get_config and inspect.signature(get_config).parameters)
    if get_config is None:
        raise UserError(f"{shown(path)} is no config: that is a .py file with a function get_config")
    if argument and not takes_argument:
        raise UserError(f"{shown(path)} takes no argument, but ':{shown(argument)}' came")
    with _one_line_in(path):
        config = get_config(argument) if argument else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {shown(path)} gives a {type(config).__name__}: it must give a ConfigDict")
    known = flatten(config)
    for override in overrides:
        field = override.removeprefix("config.")
        group, _, option = field.rpartition(".")
        if field not in known and not (option and group in ("model.options", "model.backbone_options")):
            raise UserError(f"there is no field --{shown(override)}: {nearest(field, known)}")


@contextlib.contextmanager
def _one_line_in(path: str) -> Iterator[None]:
    """What a config file raises, a value of the wrong type say, as a line with the file's own line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        lines = [error.lineno] if isinstance(error, SyntaxError) and error.lineno else lines
        where = f", line {lines[-1]}" if lines else ""
        said = shown(" ".join(str(error).split())[:300])
        raise UserError(f"{shown(path)}{where}: {type(error).__name__}: {said}; mend it there") from error


def run(_) -> None:
    # Libraries tell on this level what they looked for and did not find.
    logging.set_verbosity(logging.WARNING)
    # Orbax, and asyncio underneath, tell of a failed save in pages of tracebacks from threads of their own, beside the
    # exception that they raise; that one is told as one line.
    orbax = f"{os.sep}orbax{os.sep}"
    logging.get_absl_logger().addFilter(lambda record: not record.exc_info or orbax not in record.pathname)
    stdlib_logging.getLogger("asyncio").setLevel(stdlib_logging.CRITICAL)
    sys.unraisablehook = _unraisable
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    workdir = WORKDIR.value or default_workdir(config_file) + ("-sweep" if SWEEP.value else "")
    try:
        if MODE.value == "eval":
            from jaxseg.score import eval_run

            facts = {"checkpoint": CHECKPOINT.value, "split": SPLIT.value, **overrides}
            # Nothing is to be saved: a signal ends a process at once, and the others with it.
            with _group(workdir, {"flags": facts}) as group:
                use_compile_cache()
                eval_run(workdir, which=CHECKPOINT.value, split=SPLIT.value, overrides=overrides, group=group)
        elif SWEEP.value:
            from jaxseg.sweep import sweep

            if _place():
                raise UserError("--sweep starts one run after another on one machine: leave it, or the processes, out")
            given = [f"--config.{field}={value}" for field, value in overrides.items()]
            switches = [f"--{name}" for name in ("best_if_damaged", "accept_edited") if flags.FLAGS[name].value]
            sweep(CONFIG.value, SWEEP.value, workdir, [f"--config={config_file}", *given, *switches])
        else:
            from jaxseg.config import flatten
            from jaxseg.train import train

            with _group(workdir, {"config": flatten(CONFIG.value)}) as group:
                use_compile_cache()
                train(CONFIG.value, workdir, group=group, best_if_damaged=BEST_IF_DAMAGED.value)
    except Interrupted as signal:
        ignore_signals()
        # What shells give for a process that a signal ended.
        sys.exit(128 + signal.number)


def _unraisable(raised) -> None:
    # What TensorStore calls back into Orbax's event loop with, once a failed save has closed that.
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def _place() -> Place | None:
    place = place_from_flags(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    # Where the flags name one process, no more is looked for.
    return place or (None if NUM_PROCESSES.value else detect_place())


def _group(workdir: str, facts: Facts) -> contextlib.AbstractContextManager[Group | None]:
    """All processes of the command, once they have met; None within it where there is but one."""
    place = _place()
    if place is None:
        return contextlib.nullcontext()
    timeouts = {"start_timeout": START_TIMEOUT.value, "silence": SILENCE_TIMEOUT.value}
    facts = {"code": code_facts(), "mode": {"mode": MODE.value}, **facts}
    return together(place, facts, workdir, **timeouts, say=print_line)


def main() -> None:
    """Parses the flags and runs; a mistake of the user's ends in one message and status 1."""
    use_huge_pages()
    keep_streams()
    with one_line_errors():
        check_environment()
        app.run(run, flags_parser=parse)


if __name__ == "__main__":
    main()
