"""U-Net with pix2pix's upsampling blocks: `unet_pix2pix.py:BACKBONE,DATA`, by default `mobilenet_v2,voc`.

    python -m jaxseg.main --config=configs/unet_pix2pix.py
    python -m jaxseg.main --config=configs/unet_pix2pix.py:camvid

On MobileNetV2 it takes the features that TensorFlow's segmentation tutorial takes. The protocol of `default.for_data`.
On VOC it was not run in full yet, so no score stands here.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(argument: str = ""):
    config = default.for_data("unet_pix2pix", argument, ("mobilenet_v2", "voc"))
    if config.model.backbone == "mobilenet_v2":
        config.model.backbone_options = ConfigDict({"expanded_features": True})
    return config
