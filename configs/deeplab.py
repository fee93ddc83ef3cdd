"""DeepLabV3+ on a backbone and a data set of one's choice: `deeplab.py:BACKBONE,DATA`, by default `resnet50,voc`.

    python -m jaxseg.main --config=configs/deeplab.py
    python -m jaxseg.main --config=configs/deeplab.py:mobilenet_v2,camvid

Crops of 512, batch 16, scale 0.5 to 2, flip; SGD 0.01 with momentum 0.9 and weight decay 5e-4, poly 0.9, 20,000 steps:
the protocol of mmsegmentation's tables for VOC 2012 with SBD's masks, at output stride 16 and without an auxiliary
head. It wants a GPU. It was not run in full yet, so no score stands here.
"""

from configs import default
from jaxseg.config import backbone_and_data


def get_config(argument: str = ""):
    config = default.get_config()
    config.model.backbone, config.data.name = backbone_and_data(argument, ("resnet50", "voc"))
    if config.data.name == "voc":
        config.data.version = "2012_aug"
    config.data.crop_size = 512
    config.data.scale = (0.5, 2.0)
    config.data.workers = 8
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 5e-4
    config.train.num_steps = 20_000
    config.train.eval_every = 2_000
    config.train.checkpoint_every = 500
    config.train.log_every = 50
    return config
