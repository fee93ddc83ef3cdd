"""CamVid, 11 classes, on MobileNetV2: `camvid.py:FAMILY`, by default `deeplabv3plus`; any but `segnet`.

    python -m jaxseg.main --config=configs/camvid.py --config.data.dir=DIR --config.model.weights=WEIGHTS
    python -m jaxseg.main --config=configs/camvid.py:unet --config.data.dir=DIR --config.model.weights=WEIGHTS

367 training images, void ignored, the settings of `default.for_data`; scored at 480x360. The README has the scores.
About a quarter of an hour on two CPU cores, half an hour for `unet` and `fpn`.
"""

from configs import default


def get_config(family: str = "deeplabv3plus"):
    return default.for_data(family, "", ("mobilenet_v2", "camvid"))
