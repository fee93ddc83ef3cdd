"""The same networks in PyTorch, as contenders: SMP's, torchvision's, and SegNet, which neither has."""

import gc
import importlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.benchmark.measure import Contender, alternate
from jaxseg.benchmark.networks import AUXILIARY_WEIGHT, LEARNING_RATE
from jaxseg.errors import UserError
from jaxseg.lookup import lookup
from jaxseg.models.backbones.vgg import STAGES
from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD

# Options with which ours are theirs, where the families' own choices are another library's.
OPTIONS: dict[str, dict[str, Any]] = {"fcn": {"aux_head": True}}

COMPILED, EAGER = "compiled", "eager"
ORDERS = ("channels-last", "contiguous")
FORMS = {
    "all": tuple(itertools.product((COMPILED, EAGER), ORDERS)),
    "eager": tuple((EAGER, order) for order in ORDERS),
    "compiled": ((COMPILED, "channels-last"),),  # the likely fastest on a GPU alone
}


def import_torch():
    """PyTorch; a `UserError` where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError(f"--against=torch: there is no PyTorch here ({error}): pip install torch") from error


def import_torchvision():
    """torchvision, beside a PyTorch for CPUs too, for which its wheel is not built.

    Its operators are missing there and the import fails. With the schemas of the two operators that it registers fakes
    for, it imports; networks need neither.
    """
    torch = import_torch()
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise UserError(f"--against=torch: there is no torchvision here ({error})") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        try:
            torch.library.define(f"torchvision::{operator}", schema)
        except RuntimeError as error:
            if "already" not in str(error) and "multiple times" not in str(error):
                raise
    return importlib.import_module("torchvision")


def _smp(name: str) -> Callable:
    def build(backbone: str, num_classes: int):
        import_torchvision()
        try:
            smp = importlib.import_module("segmentation_models_pytorch")
        except ImportError as error:
            raise UserError(f"--against=torch: there is no segmentation_models_pytorch here ({error})") from error
        return getattr(smp, name)(backbone, encoder_weights=None, classes=num_classes)

    return build


def _fcn(backbone: str, num_classes: int):
    networks = import_torchvision().models.segmentation
    builders = {"resnet50": networks.fcn_resnet50, "resnet101": networks.fcn_resnet101}
    build = lookup(builders, backbone, "backbone of torchvision's FCN")
    return build(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True)


def _segnet(backbone: str, num_classes: int):
    """SegNet on VGG-16 with BatchNorm, written as PyTorch's users write it; equal to ours, tests/peers."""
    nn = import_torch().nn

    def conv(before, after):
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))

    class SegNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder, channels = nn.ModuleList(), nn.ModuleList(), 3
            for count, features in STAGES:
                widths = [channels, *[features] * count]
                self.encoder.append(nn.Sequential(*itertools.starmap(conv, itertools.pairwise(widths))))
                mirror = [conv(b, a) for a, b in reversed(list(itertools.pairwise(widths)))]
                self.decoder.insert(0, nn.Sequential(*mirror))
                channels = features
            self.decoder[-1][-1] = nn.Conv2d(STAGES[0][1], num_classes, 3, padding=1)

        def forward(self, x):
            places = []
            for stage in self.encoder:
                x = stage(x)
                size = x.shape[2:]
                x, indices = nn.functional.max_pool2d(x, 2, return_indices=True)
                places.append((indices, size))
            for stage, (indices, size) in zip(self.decoder, reversed(places), strict=True):
                x = stage(nn.functional.max_unpool2d(x, indices, 2, output_size=size))
            return x

    lookup({"vgg16_bn": None}, backbone, "backbone of SegNet in PyTorch")
    return SegNet()


NETWORKS: dict[str, Callable] = {
    "deeplabv3": _smp("DeepLabV3"),
    "deeplabv3plus": _smp("DeepLabV3Plus"),
    "fcn": _fcn,
    "fpn": _smp("FPN"),
    "pspnet": _smp("PSPNet"),
    "segnet": _segnet,
    "unet": _smp("Unet"),
}


def create(family: str, backbone: str, num_classes: int):
    """The `torch.nn.Module` that is the network of `create_model(family, backbone=..., **OPTIONS.get(family, {}))`.

    Raises:
      UserError: no library here has it.
    """
    return lookup(NETWORKS, family, "family in PyTorch")(backbone, num_classes)


def fastest(
    family: str,
    backbone: str,
    batch: Mapping[str, np.ndarray],
    num_classes: int,
    *,
    train: bool,
    dtype: str,
    log: Callable[[str], None],
    forms: Sequence[tuple[str, str]] = FORMS["all"],
    block: int | None = None,
) -> Contender | None:
    """Of the network in all `forms`, eager or compiled and in either order of memory, the one with the fastest step.

    A form that fails is told and left out; None where all do.
    """
    torch = import_torch()
    best, least = None, float("inf")
    for how, order in forms:
        name = f"PyTorch {how}, {order}"
        network = create(family, backbone, num_classes)
        settings = {"compiled": how == COMPILED, "order": order, "train": train, "dtype": dtype}
        try:
            contender = _contender(network, batch, name, **settings)
            seconds = statistics.median(alternate([contender], 3, block)[name])
        except Exception as error:  # of the device, of the compiler, of an operation that it lacks
            log(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            continue
        finally:
            del network
            gc.collect()
            if torch.cuda.is_available():
                # What an earlier form leaves would count as the next one's.
                torch.cuda.empty_cache()
        log(f"{name}: {1000 * seconds:.1f} ms a step, the first after {contender.compile_seconds:.1f} s")
        if seconds < least:
            best, least = contender, seconds
    return best


def _contender(network, batch, name, *, compiled, order, train, dtype) -> Contender:
    torch = import_torch()
    torch.backends.cudnn.benchmark = True  # XLA tries its convolutions out too
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory_format = torch.channels_last if order == "channels-last" else torch.contiguous_format
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0  # of the best form so far
    network = network.to(device, memory_format=memory_format).train(train)
    images = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.from_numpy(batch["labels"].astype(np.int64)).to(device)
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True) if train else None
    cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=255)

    def forward(images):
        return network(((images.float() / 255 - mean) / std).contiguous(memory_format=memory_format))

    def loss_of(images, labels):
        logits = forward(images)
        if not isinstance(logits, Mapping):
            return cross_entropy(logits.float(), labels)
        out, aux = (cross_entropy(logits[key].float(), labels) for key in ("out", "aux"))
        return out + AUXILIARY_WEIGHT * aux

    function = loss_of if train else forward
    if compiled:
        function = torch.compile(function)

    def once():
        if not train:
            with torch.inference_mode(), autocast:
                return function(images)
        with autocast:
            loss = function(images, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def run(n):
        for _ in range(n):
            once()
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run(1)
    seconds = time.perf_counter() - started
    memory = None
    if device.type == "cuda":
        # Without the workspaces that are tried in the first step.
        torch.cuda.reset_peak_memory_stats()
        run(2)
        memory = torch.cuda.max_memory_allocated() - before
    return Contender(name, run, seconds, memory)
