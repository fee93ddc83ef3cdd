"""A run of the second stage, from a finished run to its own: trained, stopped, resumed, scored and predicted with."""

import signal

import numpy as np
import pytest
from helpers import assert_same_run, at_step, rows, saved

import jaxseg
from jaxseg import config as configs
from jaxseg.errors import UserError
from jaxseg.process import Interrupted
from jaxseg.score import eval_run
from jaxseg.state import abstract_variables
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]


def refining(workplace, base, **overrides):
    fields = {
        "refine__base": str(base),
        "refine__width": 2,
        "refine__discriminator_width": 2,
        "optim__learning_rate": 1e-3,
        "train__num_steps": 4,
        "train__eval_every": 2,
        "train__checkpoint_every": 2,
        **overrides,
    }
    return workplace.config(**fields)


def quiet(line):
    pass


def test_a_run_is_refined_stopped_and_resumed_and_is_a_run_as_any(tiny, finished, tmp_path, monkeypatch):
    config, lines = refining(tiny, finished), []
    train(config, tmp_path / "whole", log=lines.append)
    assert any(f"the network of {finished} at step" in line for line in lines)

    # The first stage is the best network of the other run, before and after.
    first = {
        name.replace("['first']", ""): value
        for name, value in saved(tmp_path / "whole", "latest").items()
        if name.startswith("variables") and "['first']" in name
    }
    base = {name: value for name, value in saved(finished, "best").items() if name.startswith("variables")}
    assert first.keys() == base.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, base[name], err_msg=name)
    trained = [row for row in rows(tmp_path / "whole") if "train/loss" in row]
    assert all(np.isfinite(row["train/discriminator"]) for row in trained)
    for row in trained:
        due = row["train/adversarial"] + config.refine.lambda_cross_entropy * row["train/cross_entropy"]
        assert row["train/loss"] == pytest.approx(due, rel=1e-5)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
        train(config, tmp_path / "stopped", log=quiet)
    train(config, tmp_path / "stopped", log=quiet)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole", progress=False)

    scores = eval_run(tmp_path / "whole", log=quiet)
    assert 0 <= scores["val/mean_iou"] <= 1
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    assert jaxseg.load(tmp_path / "whole")(image).shape == (37, 50)


def test_before_its_first_step_it_predicts_what_the_first_stage_does(tiny, finished, tmp_path):
    """A run of which only the first scoring is left: with a rate of nearly 0 nothing is learned."""
    config = refining(tiny, finished, train__num_steps=1, optim__learning_rate=1e-12)
    train(config, tmp_path / "run", log=quiet)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    before, after = (jaxseg.load(folder)(image, probabilities=True) for folder in (finished, tmp_path / "run"))
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train__ema_decay": 0.9}, "train.ema_decay is 0.9: with a refine.base it must be 0.0"),
        ({"loss__dice": 0.5}, "loss.dice is 0.5: with a refine.base it must be 0.0"),
        ({"model__output_stride": 8}, "a run with model.output_stride 0, and here it is 8: set it so, or take all"),
        ({"refine__base": "nowhere"}, "nowhere is no workdir of a run"),
        ({"data__name": "shapes", "data__dir": ""}, "was trained with the classes .*; the data has .* now"),
    ],
)
def test_what_can_not_be_refined_is_refused(overrides, words, tiny, finished, tmp_path):
    with pytest.raises(UserError, match=words):
        train(refining(tiny, finished, **overrides), tmp_path / "run", log=quiet)


def test_the_config_of_the_base_is_one_to_start_from(tiny, finished):
    config = configs.get_config(str(finished))
    config.refine.base = str(finished)
    configs.validate(config)
    variables = abstract_variables(configs.build_model(config, 3))
    assert variables["params"].keys() == {"first", "refiner"}
