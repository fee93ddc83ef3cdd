"""Every field once, with its meaning. The other configs change what differs; any field can be set by a flag as well.

    python -m jaxseg.main --config=configs/default.py --config.train.num_steps=1100

What each may be, from and to what, stands in jaxseg/fields.py, options of networks and backbones too; a value beyond
that is refused by its name before any data is read. A norm that would take its statistics from one value, as that of
DeepLab's image pooling does in a batch or slice of one image, is refused before the first step, as is a step that takes
more memory than is free.

It is DeepLabV3+ on MobileNetV2 on the generated shapes; how long it trains has to be said, see quickstart.py.
"""

from ml_collections import ConfigDict, FieldReference

from jaxseg.config import backbone_and_data, lock


def get_config() -> ConfigDict:
    """The defaults, locked: a field that is not here is a mistake."""
    config = ConfigDict()

    config.data = data = ConfigDict()
    data.name = "shapes"  # shapes, camvid, voc, monuseg, loveda, or folder, for images of your own
    data.version = ""  # of the data set, where it has several, see README; '' for its default
    # A folder already on disk; '' where the data set is made, fetched or found by itself. A run goes on wherever the
    # same images and labels lie by now.
    data.dir = ""
    # How images lie that say an orientation (EXIF, TIFF) and whose masks fit both ways: shown or stored; '': as shown,
    # unless other masks fit only as stored, which is refused. Where one size fits, that is taken. `predict` turns all,
    # or with stored none.
    data.orientation = ""
    data.batch_size = 16  # images a step, over all devices and processes
    data.eval_batch_size = 16  # images of up to 512x512 a step of evaluation, fewer larger ones; no score depends on it
    data.resize = ()  # (height, width) that training images are brought to before all else; (): their own
    data.variants = ()  # of jaxseg.data.transforms.VARIANTS: an epoch has every image once in each; (): once
    # Pixels, or (height, width), after scaling; what is missing is padded with label 255. An object, to take either.
    data.crop_size = FieldReference(128, field_type=object)
    data.scale = (1.0, 1.0)  # lowest and highest random factor
    data.center_crop = False  # the crop in the middle, not anywhere
    data.flip = True  # left and right, one image in two
    data.vertical_flip = False  # upside down, one image in two
    data.rotate90 = False  # by a random number of quarter turns; wants a square crop
    data.grid_distortion = 0.0  # strength of wider and narrower rows and columns, below 1; 0: off
    data.elastic = 0.0  # pixels, standard deviation of a smooth deformation; 0: off
    data.jitter = 0.0  # strength of the change of brightness, contrast, saturation and hue; 0: off
    data.stain = 0.0  # strength of the change of a tissue's stains, below 1; 0: off
    data.mean = ()  # RGB of [0, 1], taken away; () for what model.weights were trained with, or else ImageNet's
    data.std = ()  # RGB of [0, 1], divided by; () likewise
    data.on_device = False  # whether the training images are kept there, decoded, and augmented there
    data.workers = 0  # processes that read and augment; 0: threads of the main one

    config.model = model = ConfigDict()
    model.name = "deeplabv3plus"  # the family, see python -m jaxseg.models
    model.backbone = "mobilenet_v2"  # see python -m jaxseg.models
    model.output_stride = 0  # of the backbone: 8, 16 or 32; 0: the family's own choice
    model.backbone_options = ConfigDict()  # fields of the backbone, where a config gives any
    model.options = ConfigDict()  # fields of the family, where a config gives any
    # imagenet; or a file: .safetensors, .pth or .h5, of a backbone or of all; or the workdir of a run; '': from scratch
    model.weights = ""
    # Options in which the network may differ from that of the weights, "output_stride,rates". The same tensors give
    # other values then: what is not named here is refused.
    model.may_differ = ""
    model.dtype = "float32"  # of the computation: float32 or bfloat16; parameters and logits are float32

    config.loss = loss = ConfigDict()
    loss.cross_entropy = 1.0  # its weight in the sum; so each of the next, see jaxseg/losses.py; 0: left out
    loss.binary_cross_entropy = 0.0
    loss.dice = 0.0
    loss.jaccard = 0.0
    loss.focal = 0.0
    loss.lovasz = 0.0
    loss.tversky = 0.0
    loss.ohem = 0.0
    loss.auxiliary = 0.4  # weight of the same sum of the auxiliary head, where the network has one
    loss.label_smoothing = 0.0  # share of cross_entropy's target spread over all classes
    # '' for ones; median_frequency: those that the data set's authors published, or else counted; or '0.5,1,2', each
    # class's own.
    loss.class_weights = ""

    # A second stage behind a trained network, which stays as it is: see jaxseg/refine.py. model.* is the first one's,
    # optim.* the refiner's.
    config.refine = refine = ConfigDict()
    refine.base = ""  # workdir of the run whose best checkpoint is the first stage; '': no second stage
    refine.lambda_cross_entropy = 100.0  # weight of the cross entropy beside the adversarial loss
    refine.width = 32  # channels of the refiner's first convolution
    refine.discriminator_width = 64  # channels of the discriminator's
    refine.discriminator_learning_rate = 2e-4

    config.optim = optim = ConfigDict()
    optim.name = "adam"  # adam, adamw or sgd
    optim.learning_rate = 1e-3
    optim.backbone_lr_scale = 1.0  # the backbone's rate is this share of it
    optim.freeze_backbone = False  # its weights stay as they are, its BatchNorm's statistics too
    optim.schedule = "poly"  # constant, poly or cosine, by step; plateau, by train.best
    optim.poly_power = 0.9
    optim.plateau_factor = 0.1  # what the rate is multiplied by
    optim.plateau_patience = 5  # after so many evaluations without a better score
    optim.plateau_floor = 0.0  # and never below this rate
    optim.warmup_steps = 0  # a line from 0 before the schedule
    optim.weight_decay = 0.0  # of kernels; norms and biases are left alone
    optim.momentum = 0.9  # sgd's
    optim.clip_norm = 0.0  # the gradient's largest norm; 0: any

    config.train = train = ConfigDict()
    train.num_steps = 0  # how long; one of the two
    train.num_epochs = 0.0
    train.eval_every = 0  # steps between evaluations, or
    train.eval_epochs = 0.0  # epochs; both 0: after the last step alone
    train.checkpoint_every = 200  # steps between checkpoints; each best score is saved besides
    train.log_every = 10  # steps between rows of metrics and checks of the loss
    train.best = "mean_iou"  # what best, patience and plateau go by: a score of an evaluation; loss: its lowest
    train.patience = 0  # evaluations without a better score after which the run ends; 0: never
    train.accumulate = 1  # slices that a batch goes through the network in, to take less memory
    train.remat = False  # whether blocks of the network are computed twice, for less memory on a GPU
    train.fsdp = False  # whether the devices share weights and optimizer state, each its part of them
    train.ema_decay = 0.0  # of moving averages of the weights, scored and saved in their place; 0: none
    train.seed = 0  # of weights, order, augmentation and dropout

    config.eval = scored = ConfigDict()
    scored.split = ""  # that is scored, under its own name, `test/mean_iou`; '': the data set's own choice
    scored.protocol = "whole"  # whole, resize, resize_labels, center_crop or slide, see jaxseg/protocols.py
    # (pixels,) or (height, width) that the protocol resizes or crops to, or of the windows of slide.
    scored.size = ()
    scored.stride = 0  # pixels from one of slide's windows to the next; 0: half a window
    scored.scales = (1.0,)  # factors of the image that probabilities are averaged over
    scored.flip = False  # whether they are averaged over the image and its mirror image
    # Pixels that the sides of images are padded to multiples of for the network, in evaluation and in predict alike. 0:
    # decided as a run starts: 32, doubled until the images of the split that it scores have at most eight sizes.
    scored.multiple = 0
    scored.boundary_tolerance = 0.0  # pixels, of boundary F1; 0: it is not computed
    scored.published = ""  # a, b, c, d or e: a project's own scores besides, see jaxseg/published.py

    config.published = ConfigDict()  # figures that others published, told beside ours: setting, scores, split, data

    return lock(config)


def for_data(family: str, argument: str, default: tuple[str, str]) -> ConfigDict:
    """A family with the training settings of a data set: `argument` is `BACKBONE,DATA`, either may be left out.

    voc: those of mmsegmentation's tables, with SBD's masks: crops of 512, batch 16, scale 0.5 to 2, flip; SGD
    0.01 with momentum 0.9 and weight decay 5e-4, poly 0.9, 20,000 steps. It wants a GPU.
    camvid: scale 0.5 to 2, crops of 256, flip, batch 8; Adam 1e-3, a fifth of it for the backbone, poly 0.9; 900 steps,
    which are 20 times the 45 whole batches of the split.
    shapes, and any other: crops of 128, batch 8, Adam 2e-3, poly 0.9, 1,100 steps, as the quickstart.
    """
    config = get_config()
    config.model.name = family
    config.model.backbone, config.data.name = backbone_and_data(family, argument, default)
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
    elif config.data.name == "camvid":
        config.data.batch_size = 8
        config.data.eval_batch_size = 4
        config.data.crop_size = 256
        config.data.scale = (0.5, 2.0)
        config.optim.backbone_lr_scale = 0.2
        config.train.num_steps = 900
        config.train.eval_every = 225
    else:
        config.data.batch_size = 8
        config.optim.learning_rate = 2e-3
        config.train.num_steps = 1100
        config.train.eval_every = 275
    return config
