"""The command line, in processes of its own where the process is what matters."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, assert_same_run, flags_of, one_error, rows, steps
from PIL import Image

from jaxseg import main, process
from jaxseg.errors import UserError
from jaxseg.models.layers import dense_conv, onednn
from jaxseg.process import use_compile_cache

pytest_plugins = ["tiny_runs"]

WITHOUT_TENSORFLOW = "helpers.without_tensorflow()\n"
SLOW_STEPS = """
import time
put = helpers.running.put_batch
helpers.running.put_batch = lambda batch, mesh: (time.sleep(0.2), put(batch, mesh))[1]
"""


# A signal's own `kill` is asked for once a line has come, so these show too that lines come as they are written.
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_process_with_its_status_and_what_was_done_is_saved(number, status, finished, tiny, tmp_path):
    arguments = ["jaxseg.main", *flags_of(tiny.config()), f"--workdir={tmp_path / 'run'}"]
    process = tiny.start(*arguments, before=WITHOUT_TENSORFLOW + SLOW_STEPS)
    for line in process.stdout:
        if line.startswith("step 4/12 "):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in err and "error" not in err.lower()
    (found,) = re.findall(rf"stopped by {number.name}; step (\d+) is saved, start again to go on\n", out)
    assert steps(tmp_path / "run", "latest") == [int(found)] and 4 <= int(found) < 12
    status, out, err = tiny.run(*arguments, before=WITHOUT_TENSORFLOW)
    assert status == 0, err
    assert f"going on from step {found}\n" in out
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.slow
def test_without_tensorflow_all_but_the_events_goes_on(finished, tiny, tmp_path):
    arguments = [*flags_of(tiny.config()), f"--workdir={tmp_path}"]
    status, out, err = tiny.run("jaxseg.main", *arguments, before=WITHOUT_TENSORFLOW)
    assert status == 0, err
    assert "Traceback" not in err
    said = [line for line in out.splitlines() if "TensorBoard" in line]
    assert said == [
        "no TensorBoard events: TensorFlow is missing (pip install tensorflow-cpu); metrics.jsonl and figures go on"
    ]
    assert not (tmp_path / "events").exists() or not any((tmp_path / "events").iterdir())
    names = {path.name for path in tmp_path.iterdir()} - {"events"}
    assert names == {path.name for path in finished.iterdir()} - {"events"}
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
def test_a_finished_run_is_scored_without_its_config(finished_copy, tiny):
    status, out, err = tiny.run("jaxseg.main", "--mode=eval", f"--workdir={finished_copy}")
    assert status == 0, err
    assert out.startswith(f"step 8 of {finished_copy} on camvid val: 3 images, whole image\n")
    (row,) = [row for row in rows(finished_copy) if row["step"] == 8 and "val/mean_iou" in row]
    assert f"mean IoU {100 * row['val/mean_iou']:.2f} over" in out
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_finished_run_is_scored_on_data_that_lies_elsewhere(finished_copy, tiny, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny.data, moved)
    for folder in ("val", "valannot"):
        sorted((moved / folder).iterdir())[0].unlink()
    arguments = ["jaxseg.main", "--mode=eval", f"--workdir={finished_copy}"]
    status, out, err = tiny.run(*arguments, f"--config.data.dir={moved}", "--config.data.eval_batch_size=4")
    assert status == 0, err
    assert "camvid val: 2 images, whole image" in out
    status, out, err = tiny.run(*arguments, "--config.data.dri=x")
    assert one_error(status, err).startswith("error: there is no field --config.data.dri: did you mean data.dir or ")


@pytest.mark.slow
def test_scoring_a_folder_that_is_no_run_ends_in_one_line(tiny, tmp_path):
    status, out, err = tiny.run("jaxseg.main", "--mode=eval", f"--workdir={tmp_path}")
    assert one_error(status, err) == f"error: {tmp_path} is no workdir of a run: it has no config.json"
    assert out == ""


def test_help_tells_every_flag_and_its_meaning(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "jaxseg.main", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    text = result.stdout + result.stderr
    assert "Traceback" not in text
    for flag in ("--config:", "--workdir:", "--mode:", "--checkpoint:", "--split:"):
        assert flag in text
    assert "<train|eval>" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from jaxseg import main\n"
        "print(sorted({'jax', 'flax', 'tensorflow', 'orbax', 'grain', 'cv2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("cache_home", [True, False])
def test_compiled_programs_are_kept_in_the_users_cache(cache_home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if cache_home:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(onednn, "usable", lambda *a: False)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        use_compile_cache()
        root = tmp_path / "caches" if cache_home else tmp_path / "home" / ".cache"
        assert jax.config.jax_compilation_cache_dir == str(root / "jaxseg" / "xla")
        jax.config.update("jax_compilation_cache_dir", "/elsewhere")
        use_compile_cache()
        assert jax.config.jax_compilation_cache_dir == "/elsewhere"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_beside_onednn_programs_without_convolutions_are_kept_and_no_others(monkeypatch, tmp_path, no_compile_cache):
    """A second start reads the random weights' program, and the step still has oneDNN's convolutions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(process, "_kept_without_convolutions", [])
    if not onednn.usable(jax.numpy.float32):
        pytest.skip("this machine has no oneDNN")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        use_compile_cache()
        assert jax.config.jax_compilation_cache_dir is None
        with process.without_convolutions():
            jax.jit(lambda x: x + 1)(1.0)
        kept = list((tmp_path / "jaxseg" / "xla").iterdir())
        assert kept
        x, kernel = jax.numpy.ones((1, 8, 8, 3)), jax.numpy.ones((3, 3, 3, 4))
        lowered = jax.jit(lambda x: dense_conv(x, kernel)).lower(x)
        lowered.compile()
        assert "onednn" in lowered.compile().as_text()
        assert list((tmp_path / "jaxseg" / "xla").iterdir()) == kept
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def test_a_config_may_be_given_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main.check_config(str(ROOT / "configs" / "deeplab.py") + ":resnet18,shapes", ["config.train.num_steps"])
    assert os.fspath(ROOT) in sys.path


@pytest.mark.slow
def test_a_real_network_is_trained_scored_and_used_by_the_commands(tiny, tmp_path):
    def python(*arguments):
        environment = tiny.environment(JAX_NUM_CPU_DEVICES="1", JAX_DEFAULT_MATMUL_PRECISION="default")
        command = [sys.executable, "-m", *arguments]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
        return result.stdout

    workdir = tmp_path / "runs" / "deeplab"
    config = tiny.config(
        model__name="deeplabv3plus", model__backbone="resnet18", train__num_steps=2, train__log_every=1
    )
    out = python("jaxseg.main", *flags_of(config), f"--workdir={workdir}")
    assert out.startswith("deeplabv3plus on resnet18, ")
    assert "done: best mean IoU" in out and "going on" not in out
    assert steps(workdir, "best") == steps(workdir, "latest") == [2]
    out = python("jaxseg.main", "--mode=eval", f"--workdir={workdir}", "--split=test")
    assert out.startswith(f"step 2 of {workdir} on camvid test: 2 images, whole image\n")
    image = next((tiny.data / "test").iterdir())
    python("jaxseg.predict", f"--workdir={workdir}", f"--input={image}", f"--output={tmp_path / 'out'}")
    with Image.open(tmp_path / "out" / image.name) as mask:
        assert np.array(mask).shape == (48, 64) and np.array(mask).max() < 11
    assert pathlib.Path(tmp_path / "out" / f"{image.stem}_overlay.png").is_file()


STREAMS = [
    "| head -1",
    pytest.param(">&- 2>&- <&-", marks=pytest.mark.nightly),
    pytest.param(">/dev/full 2>&1", marks=pytest.mark.nightly),
]


@pytest.mark.slow
@pytest.mark.parametrize("redirected", STREAMS)
def test_a_run_whose_streams_take_nothing_trains_to_its_end(redirected, finished, tiny, tmp_path):
    code = f"import helpers\nhelpers.register()\n{WITHOUT_TENSORFLOW}\nhelpers.run_module('jaxseg.main')"
    shell = f'"$0" -c "$1" "${{@:2}}" {redirected}; exit ${{PIPESTATUS[0]}}'
    arguments = [*flags_of(tiny.config()), f"--workdir={tmp_path}"]
    done = subprocess.run(
        ["bash", "-c", shell, sys.executable, code, *arguments],
        cwd=ROOT,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("standard output") == ("|" in redirected), done.stderr
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves(finished, tiny, tmp_path):
    arguments = ["jaxseg.main", *flags_of(tiny.config()), f"--workdir={tmp_path}"]
    process = tiny.start(*arguments, before=WITHOUT_TENSORFLOW + SLOW_STEPS)
    for line in process.stdout:
        if line.startswith("step 4/12 "):
            break
    process.stdout.close()
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert 4 <= steps(tmp_path, "latest")[0] < 12
    status, _, err = tiny.run(*arguments, before=WITHOUT_TENSORFLOW)
    assert status == 0, err
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("config.data.batch_size", "１６"),
        ("config.optim.learning_rate", "١e-3"),
        ("config.data.scale", "(0.5,２)"),
        ("num_processes", "２"),
        ("workdir", "w/" * 3000),
        ("config", "c" * 300 + ".py"),
        ("config.model.options.a.b", "1"),
        ("config.model.options", "5"),
        ("config.data", "5"),
    ],
)
def test_a_flag_of_nonsense_is_refused_by_its_name(flag, value):
    arguments = {"config": str(ROOT / "configs" / "default.py"), flag: value}
    with pytest.raises(UserError) as refusal:
        main.parse(["jaxseg.main", *(f"--{name}={text}" for name, text in arguments.items())])
    assert f"--{flag}" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.optim.learning_rate = 'fast'", "TypeError"),
        ("config.optim.learning_rat = 1.0", "AttributeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("return None", "ConfigDict"),
        ("return {}", "ConfigDict"),
        ("if", "SyntaxError"),
        ("import nothing_such", "ModuleNotFoundError"),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(line, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"from configs import default\ndef get_config():\n    config = default.get_config()\n    {line}\n")
    with pytest.raises(UserError) as refusal:
        main.check_config(str(path), [])
    message = str(refusal.value)
    assert str(path) in message and said in message and "\n" not in message
    assert "line 4" in message or said == "ConfigDict"
