"""Project B's PSPNet on ResNet-34 (SMP's, of depth 3): `loveda` or `camvid` as argument.

    python -m jaxseg.main --config=configs/reproduce/b_pspnet.py --config.data.dir=LOVEDA
    python -m jaxseg.main --config=configs/reproduce/b_pspnet.py:camvid --config.data.dir=CAMVID
    python -m jaxseg.main --config=configs/reproduce/b_pspnet.py:as_published --config.data.dir=LOVEDA
    python -m jaxseg.main --mode=eval --workdir=runs/b_pspnet-as_published --split=train --checkpoint=latest

Source: OmerrYildirim/HuaweiProject, commit 40ac4ba and its README at b65690f. Setting: `reproduce.project_b`.
`as_published` makes one class of agriculture and no-data, leaves images in [0, 1], and is scored on the training
part, by the last command.

Published, on LoveDA's urban images, of the training part: accuracy 0.8214, F1 0.8398, precision 0.8410, recall
0.8416, mean IoU 0.7302, after 25 epochs; the lowest validation loss was 0.7493.

Ours, on CamVid's val split in place of LoveDA, from scratch and for 1 of 50 epochs, seed 0: accuracy 0.6140, mean IoU
0.1961 over 11 classes; 36 seconds on two CPU cores.
"""

from configs.reproduce import project_b, publish, start

PUBLISHED = {
    "pixel_accuracy": 0.8214,
    "mean_dice": 0.8398,
    "mean_precision": 0.8410,
    "mean_recall": 0.8416,
    "mean_iou": 0.7302,
}


def get_config(argument: str = ""):
    config, words = start(argument, "as_published", "loveda", "camvid")
    name = "camvid" if "camvid" in words else "loveda"
    project_b(config, "as_published" in words, name)
    config.model.name, config.model.backbone = "pspnet", "resnet34"
    instead_of = "LoveDA" if name == "camvid" else ""
    return publish(config, "LoveDA urban, training part, 256x256, 25 epochs", PUBLISHED, "train", instead_of)
