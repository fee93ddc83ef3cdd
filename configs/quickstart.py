"""A network that learns a dozen textured shapes from scratch in minutes on a laptop.

python -m jaxseg.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs import default


def get_config():
    config = default.get_config()
    config.train.num_steps = 480
    config.train.eval_every = 160
    return config
