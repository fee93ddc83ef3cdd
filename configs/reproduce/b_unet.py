"""Project B's U-Net of 64 to 512 filters with three poolings, from scratch: `loveda` or `camvid` as argument.

    python -m jaxseg.main --config=configs/reproduce/b_unet.py --config.data.dir=LOVEDA
    python -m jaxseg.main --config=configs/reproduce/b_unet.py:camvid --config.data.dir=CAMVID
    python -m jaxseg.main --config=configs/reproduce/b_unet.py:as_published --config.data.dir=LOVEDA
    python -m jaxseg.main --mode=eval --workdir=runs/b_unet-as_published --split=train --checkpoint=latest

Source: OmerrYildirim/HuaweiProject, commit 40ac4ba and its README at b65690f. Setting: `reproduce.project_b`.
`as_published` makes one class of agriculture and no-data, leaves images in [0, 1], and is scored on the training
part, by the last command.

Published, on LoveDA's urban images, of the training part: accuracy 0.8146, F1 0.8123, precision 0.8345, recall
0.8092, mean IoU 0.6951, after 31 epochs; the lowest validation loss was 0.7464.

Ours, on CamVid's val split in place of LoveDA, from scratch and for 1 of 50 epochs, seed 0: accuracy 0.7092, mean IoU
0.2862 over 11 classes; 7 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.reproduce import project_b, publish, start

PUBLISHED = {
    "pixel_accuracy": 0.8146,
    "mean_dice": 0.8123,
    "mean_precision": 0.8345,
    "mean_recall": 0.8092,
    "mean_iou": 0.6951,
}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published", "loveda", "camvid")
    name = "camvid" if "camvid" in words else "loveda"
    project_b(config, "as_published" in words, name)
    config.model.name, config.model.backbone = "unet", "plain"
    config.model.weights = ""
    config.model.options = ConfigDict({"batch_norm": True, "depth": 3, "upsampling": "bilinear", "dropout": 0.0})
    instead_of = "LoveDA" if name == "camvid" else ""
    return publish(config, "LoveDA urban, training part, 256x256, 31 epochs", PUBLISHED, "train", instead_of)
