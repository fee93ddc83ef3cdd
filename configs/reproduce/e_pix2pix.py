"""Project E with the adversarial refinement that its title promises: a second stage on a finished `e_unet_mobilenetv2`.

    python -m jaxseg.main --config=configs/reproduce/e_unet_mobilenetv2.py
    python -m jaxseg.main --config=configs/reproduce/e_pix2pix.py
    python -m jaxseg.main --mode=eval --workdir=runs/e_unet_mobilenetv2 --config.eval.boundary_tolerance=3

Source: smunjewar/Image_Segmentation, commit 70fc18e.

The project trained no GAN; there is nothing published to compare with. Boundary F1 and mean IoU before refining are
what the last command prints, those after it the second one's. The first stage is `runs/e_unet_mobilenetv2`; another
one: `--config.refine.base=WORKDIR`.

Ours, on the 15 validation images of that run's subset of VOC, 5 epochs, seed 0, before and after refining: mean IoU
0.0549 and 0.0751, boundary F1 at 3 pixels 0.0537 and 0.0462, accuracy 0.7493 and 0.7687; 3 minutes of steps on two CPU
cores. Of a first stage that has learned so little these say no more than that the second one runs.
"""

from configs.reproduce import e_unet_mobilenetv2, publish


def get_config(argument: str = ""):
    config = e_unet_mobilenetv2.get_config(argument).unlock()
    config.refine.base = "runs/e_unet_mobilenetv2"
    config.optim.freeze_backbone, config.optim.learning_rate = False, 2e-4
    config.data.batch_size, config.train.num_epochs = 8, 5.0
    config.train.best = "mean_iou"
    config.eval.boundary_tolerance = 3.0
    return publish(config, "nothing was published of a refinement", {})
