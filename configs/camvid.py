"""DeepLabV3+ on MobileNetV2, CamVid, 11 classes: the recipe that the README's scores are of.

    python -m jaxseg.main --config=configs/camvid.py --config.data.dir=DIR --config.model.weights=WEIGHTS

367 training images, void ignored; scale 0.5 to 2, crops of 256, flip; batch 8; Adam 1e-3, a fifth of it for the
backbone, poly 0.9 by step; 900 steps, which are 20 times the 45 whole batches of the split. Scored at 480x360.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "camvid"
    config.data.batch_size = 8
    config.data.eval_batch_size = 4
    config.data.crop_size = 256
    config.data.scale = (0.5, 2.0)
    config.optim.backbone_lr_scale = 0.2
    config.train.num_steps = 900
    config.train.eval_every = 225
    return config
