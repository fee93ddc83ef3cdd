"""Five published projects, a file a row of their tables; `README.md` has what they measured and what is measured here.

Each file's docstring is its experiment card. The default is the sound protocol: labels right, splits without leaks,
standard scores. With `as_published` as its argument a file gives what was really run, faults included.
"""

from ml_collections import ConfigDict

from configs import default
from jaxseg.config import lock
from jaxseg.errors import UserError
from jaxseg.lookup import nearest


def start(argument: str, *words: str) -> tuple[ConfigDict, set[str]]:
    """The default config, unlocked, and which of `words` the argument `WORD,WORD` has.

    Raises:
      UserError: it has another word.
    """
    given = set(filter(None, argument.split(",")))
    for word in sorted(given - set(words)):
        raise UserError(f"this config has no argument '{word}': {nearest(word, words)}")
    config = default.get_config()
    config.unlock()
    return config, given


def publish(
    config: ConfigDict, setting: str, scores: dict[str, float], split: str = "", instead_of: str = ""
) -> ConfigDict:
    """The config with what was published, by the names of our scores, of one split or all, and locked.

    `instead_of` names the published data set where the config has another.
    """
    told = {"setting": setting, "split": split, "data": f"in place of {instead_of}" if instead_of else ""}
    config.published = ConfigDict({name: text for name, text in told.items() if text} | {"scores": scores})
    return lock(config)


def project_a(config: ConfigDict, as_published: bool) -> None:
    """CamVid at 224x224, 12 classes (void is the last), six samples of each of the 367 images, 4 epochs of them.

    NabeelEhsan/Semantic-Segmentation, commit 7a442de. Its "test" images are CamVid's val split; what it held out of
    the augmented samples for validation was part of training too. As published the images are normalised as for VGG16,
    whatever the network. Not repeated: masks resized with a bilinear filter, which invents labels at borders; Adam's
    state lost at every epoch; a fifth of the samples, drawn anew in every pass, left out.
    """
    data, optim, train = config.data, config.optim, config.train
    data.name, data.version = "camvid", "12"
    data.resize, data.crop_size, data.flip = (224, 224), 224, False
    # Its centre crop of 224 pixels is the whole image of 224 pixels.
    data.variants = ("identity", "rotate90", "identity", "vertical_flip", "flip", "grid_distortion")
    data.batch_size = 8
    if as_published:
        data.mean, data.std = (0.48502, 0.45796, 0.40760), (1 / 255, 1 / 255, 1 / 255)
    config.eval.protocol, config.eval.size, config.eval.published = "resize_labels", (224, 224), "a"
    config.model.weights = "imagenet"
    optim.learning_rate, optim.schedule = 1e-3, "constant"
    train.num_epochs, train.eval_epochs = 4.0, 1.0


def project_b(config: ConfigDict, as_published: bool, data_name: str) -> None:
    """Images of 256x256, batches of 8, Adam 1e-4, at most 50 epochs, patience 5 on the validation loss.

    OmerrYildirim/HuaweiProject, commit 40ac4ba, on LoveDA's urban training folder split 80/20. `data_name` is `loveda`
    or, as those images may not be at hand, `camvid`. The default takes LoveDA's own urban splits and labels. As
    published class 7 and no-data are one class and images are only scaled to [0, 1]; the scores are of the last epoch
    on the training images, `--mode=eval --checkpoint=latest --split=train`.
    """
    data, optim, train = config.data, config.optim, config.train
    data.name = data_name
    if data_name == "loveda":
        data.version = "project_b" if as_published else "urban"
    data.resize, data.crop_size = (256, 256), 256
    data.batch_size, data.flip = 8, not as_published
    config.eval.protocol, config.eval.size, config.eval.published = "resize_labels", (256, 256), "b"
    if as_published:
        data.mean, data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    config.model.weights = "imagenet"
    optim.learning_rate, optim.schedule = 1e-4, "constant"
    train.num_epochs, train.eval_epochs, train.patience, train.best = 50.0, 1.0, 5, "loss"


def project_c(config: ConfigDict, as_published: bool, floor: float = 1e-5) -> None:
    """MoNuSeg patches of 256x256, nuclei and background, Adam 1e-3, at most 50 epochs of 972 patches.

    arslanamin14/Image-Segmentation, commit 0aa389d. The rate falls to a tenth after 5 epochs without a lower validation
    loss, but not under `floor`; after 10 the run ends. As published the patches, which overlap by half, are split 90/10
    by patch, so that validation pixels are in training, and the polygons of test images are filled with their outline,
    where training masks end half a pixel earlier. By default whole images are held out, and all masks follow one rule,
    see `MoNuSeg` in jaxseg/data.
    """
    data, optim, train = config.data, config.optim, config.train
    data.name, data.version = "monuseg", "by_patch,full_polygons" if as_published else ""
    data.crop_size, data.flip = 256, not as_published
    if not as_published:
        data.vertical_flip = data.rotate90 = True
    data.mean, data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    data.batch_size = 32
    config.eval.published = "c"
    optim.learning_rate, optim.schedule = 1e-3, "plateau"
    optim.plateau_factor, optim.plateau_patience, optim.plateau_floor = 0.1, 5, floor
    train.num_epochs, train.eval_epochs, train.patience, train.best = 50.0, 1.0, 10, "loss"


def project_d(config: ConfigDict, as_published: bool) -> None:
    """VOC 2012 at 256x256, batches of 4, Adam 1e-3, 5 epochs, the best checkpoint by validation loss, patience 3.

    Siri1507/semantic-segmentation, commit 9f3cc8f. As published only the first 50 training and 20 validation images are
    used, masks are read as greys, so that 18 classes and the border become class 20, nothing is ignored, and images are
    scaled to [0, 1] where the weights expect -1 to 1.
    """
    data, optim, train = config.data, config.optim, config.train
    data.name, data.version = "voc", "2012_project_d" if as_published else "2012"
    data.resize, data.crop_size, data.batch_size, data.flip = (256, 256), 256, 4, not as_published
    if as_published:
        data.mean, data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    config.eval.protocol, config.eval.size, config.eval.published = "resize_labels", (256, 256), "d"
    config.model.weights = "imagenet"
    optim.learning_rate, optim.schedule = 1e-3, "constant"
    train.num_epochs, train.eval_epochs, train.patience, train.best = 5.0, 1.0, 3, "loss"


def project_e(config: ConfigDict) -> None:
    """VOC 2012's train and val pooled and split anew, 2,164 / 449 / 300; 224x224, batches of 32, Adam 1e-3, 30 epochs.

    smunjewar/Image_Segmentation, commit 70fc18e, whose notebook is not public: report and slides were read. Flips both
    ways; early stopping on the validation loss, of a patience that is not said (here 5). The published score is pixel
    accuracy, background included. Nothing in it is known to be wrong, so `as_published` changes nothing.
    """
    data, optim, train = config.data, config.optim, config.train
    data.name, data.version = "voc", "2012_resplit"
    data.resize, data.crop_size, data.batch_size = (224, 224), 224, 32
    data.flip = data.vertical_flip = True
    config.eval.protocol, config.eval.size, config.eval.published = "resize_labels", (224, 224), "e"
    config.model.weights = "imagenet"
    optim.learning_rate, optim.schedule, optim.freeze_backbone = 1e-3, "constant", True
    train.num_epochs, train.eval_epochs, train.patience, train.best = 30.0, 1.0, 5, "loss"
