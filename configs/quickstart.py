"""A network that learns a dozen kinds of textured shapes from scratch, in minutes on a laptop.

    python -m jaxseg.main --config=configs/quickstart.py --workdir=runs/quickstart

ResNet-18, which learns from scratch sooner than MobileNetV2 does (a mean IoU of 0.66 against 0.23 after 5,000 images);
small rates and a narrow decoder, because the coarsest feature is 8x8. Two CPU cores: 5 to 8 minutes, mean IoU 0.866 or
more.
"""

from configs import default


def get_config():
    config = default.for_data("deeplabv3plus", "", ("resnet18", "shapes"))
    with config.unlocked():
        config.model.options.rates = (1, 2, 3)
        config.model.options.features = 128
        config.model.options.dropout = 0.1
    return config
