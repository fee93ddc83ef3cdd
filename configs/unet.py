"""U-Net on a backbone and a data set of one's choice: `unet.py:BACKBONE,DATA`, by default `resnet50,voc`.

    python -m jaxseg.main --config=configs/unet.py
    python -m jaxseg.main --config=configs/unet.py:mobilenet_v2,camvid
    python -m jaxseg.main --config=configs/unet.py:plain,camvid

BACKBONE `plain` is the paper's own network, with BatchNorm. A form with three poolings has
`--config.model.options.depth=3 --config.model.options.upsampling=bilinear`, one with 16 filters and 3x3 transposed
convolutions `--config.model.options.width=16 --config.model.options.up_kernel_size=3`.

The protocol of `default.for_data`. On VOC it was not run in full yet, so no score stands here.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(argument: str = ""):
    config = default.for_data("unet", argument, ("resnet50", "voc"))
    if config.model.backbone == "plain":
        options = {"width": 64, "depth": 4, "convs": 2, "batch_norm": True, "conv_bias": True, "dropout": 0.5}
        config.model.options = ConfigDict(options | {"upsampling": "transposed", "up_kernel_size": 2})
    return config
