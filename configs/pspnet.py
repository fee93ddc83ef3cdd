"""PSPNet on a backbone and a data set of one's choice: `pspnet.py:BACKBONE,DATA`, by default `resnet50,voc`.

    python -m jaxseg.main --config=configs/pspnet.py
    python -m jaxseg.main --config=configs/pspnet.py:mobilenet_v2,camvid

The paper's form: the backbone dilated to output stride 8, and the auxiliary head, whose loss has the weight 0.4. The
protocol of `default.for_data`. On VOC it was not run in full yet, so no score stands here.
"""

from ml_collections import ConfigDict

from configs import default
from jaxseg.models.pspnet import PAPER


def get_config(argument: str = ""):
    config = default.for_data("pspnet", argument, ("resnet50", "voc"))
    config.model.options = ConfigDict(PAPER)
    return config
