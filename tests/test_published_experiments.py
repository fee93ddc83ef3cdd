"""The configs of the published experiments: their networks' counts, and what their arguments change."""

import importlib
import re

import jax
import jax.numpy as jnp
import pytest

from jaxseg import config as configs
from jaxseg import files
from jaxseg.data import data_info
from jaxseg.errors import UserError

# Config and argument: trainable parameters as the projects printed them or as their code was rebuilt. Theirs with one
# sigmoid output have two logits here: as many parameters more as the classifier has inputs, and one.
COUNTS = {
    ("a_unet_vgg16", ""): 23_749_836,
    ("a_fpn_mobilenet", ""): 6_091_596,
    ("a_fpn_mobilenet", "mobilenet_v2"): None,
    ("b_fcn", ""): 32_949_831,
    ("b_fcn", "camvid"): None,
    ("b_unet", ""): 7_788_935,
    ("b_pspnet", ""): None,  # theirs holds stages that it computes and throws away
    ("b_deeplabv3", ""): 39_635_271,
    ("c_unet", ""): 2_161_649 + 17,
    ("c_unet", "as_published"): 1_177_937 + 17,
    ("c_unet", "best"): None,
    ("c_segnet", ""): 364_561 + 361,
    ("c_deeplabv3plus", ""): 41_050_273 + 257,
    ("d_deeplabv3plus_mobilenetv2", ""): 2_143_061,
    ("e_unet_mobilenetv2", ""): 6_497_333,
    ("e_pix2pix", ""): None,
}


def get_config(name: str, argument: str = ""):
    return importlib.import_module(f"configs.reproduce.{name}").get_config(argument)


@pytest.mark.parametrize(("name", "argument"), COUNTS)
def test_the_networks_are_those_of_the_projects(name, argument):
    config = get_config(name, argument)
    configs.validate(config)
    num_classes = data_info(config.data.name, config.data.version).num_classes
    model = configs.build_model(config, num_classes)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    logits, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), images)
    assert logits.shape == (1, 64, 64, num_classes)
    if COUNTS[name, argument]:
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name, argument]


@pytest.mark.parametrize("name", sorted({name for name, _ in COUNTS}))
def test_every_config_has_its_card_and_a_sound_and_a_published_form(name):
    module = importlib.import_module(f"configs.reproduce.{name}")
    assert f"configs/reproduce/{name}.py" in module.__doc__
    for told in (r"\nSource: \S+/\S+, commit [0-9a-f]{7}", "ublished", r"\n(Ours, .* two CPU\s+cores|Not run)"):
        assert re.search(told, module.__doc__, re.DOTALL), told
    sound, published = get_config(name), get_config(name, "as_published")
    configs.validate(published)
    assert sound.is_locked and sound.published.setting
    if not name.startswith("e_"):
        assert configs.flatten(sound) != configs.flatten(published)
    with pytest.raises(UserError, match="this config has no argument 'as_publisht': did you mean as_published"):
        get_config(name, "as_publisht")


def test_what_was_published_is_no_part_of_what_a_run_is(tmp_path):
    config = get_config("a_unet_vgg16")
    (tmp_path / files.CONFIG).write_text(configs.to_json(config))
    config.published.scores.pixel_accuracy = 0.5
    configs.check_same(config, tmp_path)
