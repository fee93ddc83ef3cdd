"""Project B's FCN on ResNet-50 (torchvision's, without auxiliary head): `loveda` or `camvid` as argument.

    python -m jaxseg.main --config=configs/reproduce/b_fcn.py --config.data.dir=LOVEDA
    python -m jaxseg.main --config=configs/reproduce/b_fcn.py:camvid --config.data.dir=CAMVID
    python -m jaxseg.main --config=configs/reproduce/b_fcn.py:as_published --config.data.dir=LOVEDA
    python -m jaxseg.main --mode=eval --workdir=runs/b_fcn-as_published --split=train --checkpoint=latest

Source: OmerrYildirim/HuaweiProject, commit 40ac4ba and its README at b65690f. Setting: `reproduce.project_b`.
`as_published` makes one class of agriculture and no-data, leaves images in [0, 1], and is scored on the training
part, by the last command.

Published, on LoveDA's urban images, of the training part: accuracy 0.8948, F1 0.9049, precision 0.9046, recall
0.9052, mean IoU 0.8292, after 12 epochs; the lowest validation loss was 0.7197.

Ours, on CamVid's val split in place of LoveDA, from scratch and for 1 of 50 epochs, seed 0: accuracy 0.5927, mean IoU
0.1935 over 11 classes; 7 minutes on two CPU cores.
"""

from configs.reproduce import project_b, publish, start

PUBLISHED = {
    "pixel_accuracy": 0.8948,
    "mean_dice": 0.9049,
    "mean_precision": 0.9046,
    "mean_recall": 0.9052,
    "mean_iou": 0.8292,
}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published", "loveda", "camvid")
    name = "camvid" if "camvid" in words else "loveda"
    project_b(config, "as_published" in words, name)
    config.model.name, config.model.backbone = "fcn", "resnet50"
    instead_of = "LoveDA" if name == "camvid" else ""
    return publish(config, "LoveDA urban, training part, 256x256, 12 epochs", PUBLISHED, "train", instead_of)
