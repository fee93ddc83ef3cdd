"""ImageNet weights from the Hugging Face hub: which file of which repository, at which revision.

The repositories are segmentation_models_pytorch's own mirrors of the weights that torchvision published, and the
revisions those that its version 0.6.0 pins. A revision is a commit: its hash covers the checksum of the file.
"""

import contextlib
import hashlib
import logging
import pathlib
import string
from collections.abc import Iterator
from typing import NamedTuple

from jaxseg.errors import UserError


class HubFile(NamedTuple):
    """A file of a repository on the hub.

    Fields:
      repo: its name, with the owner's.
      revision: the commit.
      name: of the file.
      sha256: of its content; None where it is not known here. Then what was fetched is held against the checksum that
        the hub gave with it, which the cache keeps as the name of the stored file.
    """

    repo: str
    revision: str
    name: str = "model.safetensors"
    sha256: str | None = None

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.name}"


# By backbone.
IMAGENET = {
    "mobilenet_v2": HubFile("smp-hub/mobilenet_v2.imagenet", "e67aa804e17f7b404b629127eabbd224c4e0690b"),
    "resnet18": HubFile("smp-hub/resnet18.imagenet", "3f2325ff978283d47aa6a1d6878ca20565622683"),
    "resnet34": HubFile("smp-hub/resnet34.imagenet", "7a57b34f723329ff020b3f8bc41771163c519d0c"),
    "resnet50": HubFile("smp-hub/resnet50.imagenet", "00cb74e366966d59cd9a35af57e618af9f88efe9"),
    "resnet101": HubFile("smp-hub/resnet101.imagenet", "cd7c15e8c51da86ae6a084515fdb962d0c94e7d1"),
    "vgg16": HubFile("smp-hub/vgg16.imagenet", "49d74b799006ee252b86e25acd6f1fd8ac9a99c1"),
    "vgg16_bn": HubFile("smp-hub/vgg16_bn.imagenet", "2c186d02fb519e93219a99a1c2af6295aef0bf0d"),
}

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"

# Weights that no repository is pinned for, and that load from a file.
ELSEWHERE = {
    "mobilenet_v1": f"{_KERAS}/mobilenet/mobilenet_1_0_224_tf_no_top.h5",
    "mobilenet_v3_large": "https://download.pytorch.org/models/mobilenet_v3_large-5c1a4163.pth",
    "mobilenet_v3_small": "https://download.pytorch.org/models/mobilenet_v3_small-047dcff4.pth",
    "xception": f"{_KERAS}/xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
}


def fetch(backbone: str) -> pathlib.Path:
    """The file with a backbone's ImageNet weights, from the hub's cache or, the first time, from the hub.

    Raises:
      UserError: none is known for this backbone, it can't be fetched (the message says which file to put where), or
        what was fetched has another checksum.
    """
    if backbone not in IMAGENET:
        where = f"fetch {ELSEWHERE[backbone]} and give its path" if backbone in ELSEWHERE else "give a file of your own"
        raise UserError(
            f"weights: no file of the hub is known for {backbone} on ImageNet: {where}, --config.model.weights=FILE"
        )
    file = IMAGENET[backbone]
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(_by_hand(file, "the package huggingface_hub is missing")) from error
    download = huggingface_hub.hf_hub_download  # loads the part of the client that sets its logger up
    try:
        with _quiet():
            path = download(file.repo, filename=file.name, revision=file.revision)
    except Exception as error:  # of which library, and of what kind, depends on what lies between here and the hub
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
        cache = pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{file.repo.replace('/', '--')}"
        raise UserError(_by_hand(file, reason, cache / "snapshots" / file.revision / file.name)) from error
    path = pathlib.Path(path)
    _check(path, file)
    return path


def _by_hand(file: HubFile, reason: str, place: pathlib.Path | None = None) -> str:
    return (
        f"weights: {file.name} of {file.repo} can't be had from the Hugging Face hub ({reason.rstrip('.')}). Fetch "
        f"{file.url} where there is a net, and "
        + (f"put it here as {place}, or anywhere and " if place else "put it here and ")
        + "give its path, --config.model.weights=FILE"
    )


def _check(path: pathlib.Path, file: HubFile) -> None:
    stored = path.resolve().name
    due = file.sha256 or (stored if len(stored) == 64 and set(stored) <= set(string.hexdigits) else None)
    if due is None:
        return
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != due:
        raise UserError(
            f"weights: {path} is damaged or no {file.name} of {file.repo}: its sha256 is {found}, {due} is due. Delete "
            "it and start again to fetch it anew"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The hub's client tells of every try in two lines; what came of it is in the error.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
