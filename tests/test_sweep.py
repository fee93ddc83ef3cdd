"""Every combination once, whatever stops, fails or was done before."""

import json
import re
import signal
import sys
import textwrap
import time

import pytest
from helpers import assert_same_run, flags_of, one_error, rows, tiny_config

from configs import default
from jaxseg import config as configs
from jaxseg import sweep as sweeping
from jaxseg.errors import UserError
from jaxseg.sweep import finished, plan, sweep

pytest_plugins = ["tiny_runs"]

GRID = ["optim.learning_rate=1e-4,3e-4", "train.seed=0,1,2"]

# Stands for `python -m jaxseg.main`: a run is done at once, and fails where its seed is that of the environment.
FAKE = """
import json, os, pathlib, sys
flags = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
workdir, seed = pathlib.Path(flags["workdir"]), flags["config.train.seed"]
(workdir / "evaluations").mkdir(parents=True, exist_ok=True)
with open(workdir / "flags.txt", "a") as file:
    print(*sys.argv[1:], file=file)
scores = {"mean_iou": float(flags["config.optim.learning_rate"]) * 1000 + 0.01 * int(seed)}
(workdir / "evaluations" / "val-best.json").write_text(json.dumps({"scores": scores}))
print("step 1/1")
if seed == os.environ.get("FAILS"):
    print("Traceback of no interest")
    sys.exit(f"error: seed {seed} is unlucky")
(workdir / "config.json").write_text(os.environ["CONFIG"])
(workdir / "run.json").write_text(json.dumps({"status": "finished"}))
print("done: best mean IoU", scores["mean_iou"])
"""


def list_runs(workdirs, output, log):
    (output / "table.md").write_text("".join(f"| {workdir.name} |\n" for workdir in workdirs))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setenv("CONFIG", configs.to_json(nine_steps()))
    monkeypatch.setattr(sweeping, "COMMAND", (sys.executable, "-c", textwrap.dedent(FAKE)))
    # The comparison is tested where it is.
    monkeypatch.setattr(sweeping, "compare", list_runs)
    # What the stand-in leaves is no run of this config.
    monkeypatch.setattr(configs, "check_same", lambda config, workdir: None)
    monkeypatch.setattr(configs, "with_normalisation", lambda config, mean, std: config)


def nine_steps(**fields):
    config = default.get_config()
    config.train.num_steps = 9
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def run(workdir, texts=GRID, flags=("--config=here.py",), **fields):
    lines = []
    try:
        sweep(nine_steps(**fields), texts, workdir, flags, log=lines.append)
    except UserError as error:
        return lines, str(error)
    return lines, None


# ---------------------------------------------------------------------------------------------------------------- plans


def test_every_combination_has_a_workdir_named_by_its_fields(tmp_path):
    runs = plan(nine_steps(), GRID, tmp_path)
    assert [run.workdir.name for run in runs] == [
        f"learning_rate={rate},seed={seed}" for rate in (0.0001, 0.0003) for seed in (0, 1, 2)
    ]
    assert [(run.config.optim.learning_rate, run.config.train.seed) for run in runs[:2]] == [(1e-4, 0), (1e-4, 1)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["data.flip=True,false"], ["flip=True", "flip=False"]),
        (["optim.poly_power=1,1e-3"], ["poly_power=1.0", "poly_power=0.001"]),
        (["data.scale=(0.5,2.0),(1.0,1.0)"], ["scale=(0.5,2.0)", "scale=(1.0,1.0)"]),
        (["data.crop_size=64,(64,96)"], ["crop_size=64", "crop_size=(64,96)"]),
        (["model.weights=,a/b c.pth"], ["weights=", "weights=a_bc.pth"]),
        (["model.name=unet", "data.name=camvid"], ["model.name=unet,data.name=camvid"]),
    ],
)
def test_values_are_of_the_type_of_their_field(texts, names, tmp_path):
    assert [run.workdir.name for run in plan(nine_steps(), texts, tmp_path)] == names


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train.seed"], "--sweep=train.seed: FIELD=VALUE,VALUE,... is due, such as --sweep=train.seed=0,1,2"),
        (["optim.learning_rat=1"], "there is no field optim.learning_rat to sweep: did you mean optim.learning_rate"),
        (["train.seed=0,1", "train.seed=2"], "--sweep has train.seed twice: give all its values in one"),
        (["train.seed=0,1.5"], "--sweep=train.seed=...: '1.5' is not a whole number"),
        (["train.seed=0,,1"], "--sweep=train.seed=...: '' is not a whole number"),
        (["optim.learning_rate=fast"], "--sweep=optim.learning_rate=...: 'fast' is not a number"),
        (["data.flip=1"], "--sweep=data.flip=...: '1' is not True or False"),
        (["data.scale=0.5"], "--sweep=data.scale=...: '0.5' is not a tuple such as (0.5,2.0)"),
        (
            ["optim.learning_rate=1e-3,0.001"],
            "--sweep=optim.learning_rate=1e-3,0.001: learning_rate=0.001 is there twice",
        ),
        (["optim.learning_rate=1e-3,-1"], "optim.learning_rate is -1.0: it must be"),
        (
            ["model.backbone=resnet18,resnet51"],
            "unknown backbone of deeplabv3plus 'resnet51': did you mean resnet50 or",
        ),
    ],
)
def test_a_sweep_that_can_not_be_is_refused_before_anything_starts(texts, message, fake, tmp_path):
    lines, error = run(tmp_path / "sweep", texts)
    assert error.startswith(message) and "\n" not in error
    assert lines == [] and not (tmp_path / "sweep").exists()


def test_a_workdir_with_another_config_is_refused(tmp_path):
    (first, _) = plan(nine_steps(), ["train.seed=0,1"], tmp_path)
    first.workdir.mkdir()
    (first.workdir / "config.json").write_text(
        configs.to_json(configs.with_normalisation(first.config, [0.5] * 3, [1] * 3))
    )
    plan(nine_steps(), ["train.seed=0,1"], tmp_path)
    with pytest.raises(UserError, match=r"seed=0 holds a run with another config.*\n  optim.name: adam there, sgd now"):
        plan(nine_steps(optim__name="sgd"), ["train.seed=0,1"], tmp_path)


@pytest.mark.parametrize(
    ("about", "checkpoints", "due"),
    [
        ({"status": "finished"}, [], True),
        ({"status": "stopped early"}, [], True),
        ({"status": "stopped"}, ["9"], False),
        ({"status": "running"}, ["9"], False),
        (None, ["9"], True),
        (None, ["6"], False),
        (None, [], False),
    ],
)
def test_a_run_is_finished_by_its_own_words_else_by_its_last_step(about, checkpoints, due, tmp_path):
    (run,) = plan(nine_steps(), ["train.seed=0"], tmp_path)
    assert not finished(run)
    run.workdir.mkdir()
    (run.workdir / "config.json").write_text(configs.to_json(run.config))
    if about:
        (run.workdir / "run.json").write_text(json.dumps(about))
    for step in checkpoints:
        (run.workdir / "checkpoints" / "latest" / step).mkdir(parents=True)
    assert finished(run) == due
    (longer,) = plan(nine_steps(train__num_steps=12), ["train.seed=0"], tmp_path)
    assert not finished(longer)


# ----------------------------------------------------------------------------------------------------------------- runs


def test_runs_come_one_after_another_and_end_in_a_table(fake, tmp_path):
    lines, error = run(tmp_path, flags=["--config=here.py:x", "--config.optim.name=sgd"])
    assert error is None
    assert lines[0] == f"a sweep of 6 runs in {tmp_path}"
    name = "learning_rate=0.0001,seed=0"
    assert lines[1] == f"run 1 of 6: {name}, see {tmp_path / name}.log"
    assert lines[2].startswith("run 1 of 6 finished in ") and lines[2].endswith(" left: done: best mean IoU 0.1")
    assert " left: " not in lines[12] and lines[12].startswith("run 6 of 6 finished in ")
    assert (tmp_path / f"{name}.log").read_text().startswith("step 1/1\n")
    assert (tmp_path / name / "flags.txt").read_text() == (
        "--config=here.py:x --config.optim.name=sgd --config.optim.learning_rate=0.0001 --config.train.seed=0 "
        f"--workdir={tmp_path / name}\n"
    )
    rates, seeds = ("0.0001", "0.0003"), (0, 1, 2)
    assert lines[-1].splitlines() == [f"| learning_rate={rate},seed={seed} |" for rate in rates for seed in seeds]


def test_a_run_that_fails_is_told_at_the_end_and_done_again(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", "1")
    lines, error = run(tmp_path)
    first, *failures = error.splitlines()
    assert first == "2 of 6 runs failed:"
    name = "learning_rate=0.0003,seed=1"
    assert failures[1] == f"  {name}: seed 1 is unlucky (see {tmp_path / name}.log)"
    assert [line for line in lines if " failed in " in line][1].endswith("left: seed 1 is unlucky")
    table = (tmp_path / "table.md").read_text()
    assert name not in table and len(table.splitlines()) == 4
    monkeypatch.delenv("FAILS")
    lines, error = run(tmp_path)
    assert error is None
    assert lines[0] == f"a sweep of 6 runs in {tmp_path}, 4 of them finished"
    assert len([line for line in lines if " finished in " in line]) == 2
    assert len((tmp_path / name / "flags.txt").read_text().splitlines()) == 2
    assert len((tmp_path / "learning_rate=0.0003,seed=0" / "flags.txt").read_text().splitlines()) == 1


def test_a_run_that_a_signal_ended_has_failed(monkeypatch, fake, tmp_path):
    monkeypatch.setenv("CONFIG", configs.to_json(nine_steps()))
    monkeypatch.setattr(sweeping, "COMMAND", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    _, error = run(tmp_path, ["train.seed=0"])
    assert error.splitlines()[1].startswith("  seed=0: it ended by SIGKILL (see ")


def test_a_run_that_another_process_trains_is_left_alone(fake, tmp_path):
    import fcntl

    with open(tmp_path / "seed=0.log", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _, error = run(tmp_path, ["train.seed=0"])
    assert error == f"{tmp_path / 'seed=0'} is being trained by another process: wait for it or end it"


# ------------------------------------------------------------------------------------------------------ real processes

REAL = """
import sys
from jaxseg import sweep
sweep.COMMAND = (sys.executable, "-c", {code!r})
"""
SLOW_STEPS = """
import time
put = helpers.running.put_batch
helpers.running.put_batch = lambda batch, mesh: (time.sleep(0.1), put(batch, mesh))[1]
"""
CODE = "import helpers\nhelpers.register()\nhelpers.without_tensorflow()\n{more}\nhelpers.run_module('jaxseg.main')"


@pytest.mark.slow
def test_a_sweep_stopped_in_the_middle_goes_on_and_its_runs_are_those_of_no_sweep(tiny, finished, tmp_path):
    arguments = ["jaxseg.main", *flags_of(tiny.config()), f"--workdir={tmp_path}", "--sweep=train.seed=1,0"]
    process = tiny.start(*arguments, before=REAL.format(code=CODE.format(more=SLOW_STEPS)))
    log = tmp_path / "seed=0.log"
    for line in process.stdout:
        if line.startswith("run 2 of 2: seed=0, see "):
            break
    while "step 4/12 " not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None, process.communicate()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped by SIGINT (stopped by SIGINT; step " in out and out.rstrip().endswith("goes on from here")
    assert rows(tmp_path / "seed=0")[-1]["step"] < 12 and not (tmp_path / "table.md").exists()

    status, out, err = tiny.run(*arguments, before=REAL.format(code=CODE.format(more="")))
    assert status == 0, err
    assert out.startswith(f"a sweep of 2 runs in {tmp_path}, 1 of them finished\nrun 2 of 2: seed=0, see ")
    assert "going on from step " in log.read_text()
    assert re.search(r"^\| .*\b2\b.* ± ", out, re.M), out
    assert_same_run(tmp_path / "seed=0", finished)


@pytest.mark.slow
def test_a_sweep_that_can_not_be_ends_in_one_line(tiny, tmp_path):
    arguments = ["jaxseg.main", *flags_of(tiny_config(tiny.data)), f"--workdir={tmp_path / 'sweep'}"]
    status, out, err = tiny.run(*arguments, "--sweep=train.sede=0,1")
    assert one_error(status, err).startswith("error: there is no field train.sede to sweep: did you mean train.seed")
    status, out, err = tiny.run(*arguments, "--sweep=train.seed=0,1", "--mode=eval")
    assert one_error(status, err) == "error: --sweep trains: leave --mode=eval out, or --sweep"
    assert out == "" and not (tmp_path / "sweep").exists()
