"""ImageNet weights from the hub: the pinned file is asked for and checked; without a net one line says what to do."""

import hashlib
import re
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save

from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.pretrained import hub, load_pretrained, read_weights, torchvision


class Hub(types.ModuleType):
    """huggingface_hub as far as it is used: a cache with one blob, named by its checksum as the true one names it."""

    def __init__(self, cache, content: bytes = b"", error: Exception | None = None):
        super().__init__("huggingface_hub")
        self.constants = types.SimpleNamespace(HF_HUB_CACHE=str(cache))
        self.cache, self.content, self.error, self.asked = cache, content, error, []

    def hf_hub_download(self, repo_id, filename, *, revision):
        self.asked.append((repo_id, filename, revision))
        if self.error:
            raise self.error
        repo = self.cache / f"models--{repo_id.replace('/', '--')}"
        blob = repo / "blobs" / hashlib.sha256(self.content).hexdigest()
        path = repo / "snapshots" / revision / filename
        if not path.exists():
            for folder in (blob.parent, path.parent):
                folder.mkdir(parents=True)
            blob.write_bytes(self.content)
            path.symlink_to(blob)
        return str(path)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture
def serve(monkeypatch, tmp_path):
    def start(**how) -> Hub:
        served = Hub(tmp_path / "cache", **how)
        monkeypatch.setitem(sys.modules, "huggingface_hub", served)
        return served

    return start


def weights_of(backbone: str) -> bytes:
    """A file as the hub has it: every tensor of the backbone under torchvision's names, all zeros, and a classifier."""
    import jax
    from flax.traverse_util import flatten_dict

    module = BACKBONES[backbone]()
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = flatten_dict(jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images))
    layout = torchvision.backbone_layout(module)
    tensors = {
        entry.name: np.zeros(entry.their_shape(shapes[entry.path].shape), np.float32) for entry in layout.entries
    }
    return save(tensors | {"fc.weight": np.zeros((10, 4), np.float32)})


def test_the_table_is_of_backbones_and_every_revision_is_a_commit():
    assert hub.IMAGENET.keys() <= BACKBONES.keys() and hub.ELSEWHERE.keys() <= BACKBONES.keys()
    assert not hub.IMAGENET.keys() & hub.ELSEWHERE.keys()
    for file in hub.IMAGENET.values():
        assert re.fullmatch(r"[0-9a-f]{40}", file.revision) and file.name.endswith(".safetensors")
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_imagenet_is_the_pinned_file_of_the_models_own_backbone(backbone, serve):
    served = serve(content=weights_of(backbone))
    model = create_model("deeplabv3plus", backbone=backbone, num_classes=3, output_stride=8)
    weights = read_weights(model, "imagenet")
    file = hub.IMAGENET[backbone]
    assert served.asked == [(f"smp-hub/{backbone}.imagenet", "model.safetensors", file.revision)]
    assert f"from {file.repo} of the hub, under torchvision's names" in weights.report[0]
    assert {path[1] for path in weights.tensors} == {"backbone"}


def test_a_blob_that_is_no_longer_what_the_hub_gave_is_refused(serve):
    served = serve(content=b"weights")
    path = hub.fetch("resnet18")
    assert path == hub.fetch("resnet18") and path.read_bytes() == b"weights"
    path.resolve().write_bytes(b"w3ights")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or no model\.safetensors of smp-hub/resnet18"):
        hub.fetch("resnet18")
    assert len(served.asked) == 3


def test_a_checksum_of_the_table_goes_before_the_hubs(serve, monkeypatch):
    serve(content=b"weights")
    known = hub.IMAGENET["resnet18"]._replace(sha256=hashlib.sha256(b"others").hexdigest())
    monkeypatch.setitem(hub.IMAGENET, "resnet18", known)
    with pytest.raises(UserError, match=rf"its sha256 is {hashlib.sha256(b'weights').hexdigest()}, {known.sha256} is"):
        hub.fetch("resnet18")


def test_a_file_that_was_put_into_the_cache_by_hand_is_taken(serve, tmp_path):
    serve(error=OSError("no net"))
    with pytest.raises(UserError) as caught:
        hub.fetch("resnet18")
    place = re.search(r"put it here as (\S+),", str(caught.value))[1]
    assert place.startswith(str(tmp_path / "cache"))
    # The client takes what lies there without asking: the true one, below.
    assert place.endswith(
        f"models--smp-hub--resnet18.imagenet/snapshots/{hub.IMAGENET['resnet18'].revision}/model.safetensors"
    )


def test_the_true_client_takes_a_file_from_that_place_without_a_net(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    file = hub.IMAGENET["resnet18"]
    place = tmp_path / "models--smp-hub--resnet18.imagenet" / "snapshots" / file.revision / file.name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    true = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *args, **how: true(*args, **how, cache_dir=str(tmp_path))
    )
    assert hub.fetch("resnet18").read_bytes() == b"weights"
    place.unlink()
    with pytest.raises(UserError, match=r"can't be had from the Hugging Face hub \("):
        hub.fetch("resnet18")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("[Errno -2] Name or service not known\nand a page more"), "[Errno -2] Name or service not known"),
        (RuntimeError("404 Client Error."), "404 Client Error"),
        (TimeoutError(), "TimeoutError"),
        (caused(OSError("not in the cache"), OSError("no route to host")), "no route to host"),
    ],
)
def test_without_a_net_one_line_says_which_file_to_put_where(error, reason, serve):
    serve(error=error)
    model = create_model("unet", backbone="resnet34", num_classes=3)
    with pytest.raises(UserError) as caught:
        load_pretrained(model, "imagenet")
    message, file = str(caught.value), hub.IMAGENET["resnet34"]
    assert "\n" not in message
    assert (
        f"model.safetensors of smp-hub/resnet34.imagenet can't be had from the Hugging Face hub ({reason})" in message
    )
    assert f"https://huggingface.co/smp-hub/resnet34.imagenet/resolve/{file.revision}/model.safetensors" in message
    assert "--config.model.weights=FILE" in message


def test_without_the_clients_package_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"\(the package huggingface_hub is missing\)\. Fetch https://.* give its path"):
        hub.fetch("vgg16")


def test_a_backbone_without_a_pinned_file_names_one_elsewhere():
    backbone = next(iter(hub.ELSEWHERE))
    with pytest.raises(
        UserError, match=re.escape(f"known for {backbone} on ImageNet: fetch {hub.ELSEWHERE[backbone]} and")
    ):
        hub.fetch(backbone)
    with pytest.raises(UserError, match=r"known for xception65 on ImageNet: give a file of your own"):
        hub.fetch("xception65")
