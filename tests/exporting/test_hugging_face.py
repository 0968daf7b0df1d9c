"""open_clip → transformers → open_clip in one process: the same embeddings, and refusals that name the layer."""

from __future__ import annotations

import functools
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from modalign.errors import ExportError
from modalign.exporting.hugging_face import to_transformers
from modalign.exporting.open_clip import to_open_clip
from modalign.models.hugging_face import HuggingFaceClip
from modalign.models.open_clip import OpenClip
from tests import tiny

CAPTIONS = ["a red cat", "", "two dogs' 3 boats, in the green (small) tree!", "word " * 50, "ÉCLAIR", "a  b"]


def model(
    *, quick_gelu: bool = False, custom: bool = False, vision: dict[str, Any] | None = None, **text: Any
) -> OpenClip:
    config = tiny.open_clip_config(quick_gelu=quick_gelu)
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text
    torch.manual_seed(0)
    module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    tiny._perturb(module)
    length = config["text_cfg"]["context_length"]
    return OpenClip(module, config, own_tokenizer(length), "here")


@functools.cache
def own_tokenizer(length: int) -> Any:
    return open_clip.SimpleTokenizer(context_length=length)


def same(one: OpenClip | HuggingFaceClip, other: OpenClip | HuggingFaceClip, limit: float = 1e-5) -> bool:
    """On identical pixels and the first model's own tokens."""
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = one.tokenize(CAPTIONS)
    with torch.no_grad():
        image = (one.encode_image(pixels) - other.encode_image(pixels)).abs().max()
        text = (one.encode_text(tokens) - other.encode_text(tokens)).abs().max()
    return bool(max(image, text) <= limit) and one.logit_scale == pytest.approx(other.logit_scale, abs=1e-5)


EXPRESSIBLE: dict[str, dict[str, Any]] = {
    "quickgelu": {"quick_gelu": True},
    "gelu": {},
    "tanh gelu, eps": {
        "vision": {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}},
        "norm_kwargs": {"eps": 1e-4},
    },
    "mlp ratio, heads, eos pooling": {
        "vision": {"mlp_ratio": 2.5, "head_width": 16},
        **{"mlp_ratio": 3.0, "heads": 4, "pool_type": "eos", "eos_id": 49407},
    },
    "fixed positions, norm after pooling, patch dropout": {
        "vision": {"pos_embed_type": "sin_cos_2d", "final_ln_after_pool": True, "patch_dropout": 0.5}
    },
    "text tower of its own, custom blocks without extras": {
        "custom": True,
        "vision": {"block_type": "custom"},
        "block_type": "custom",
    },
    "larger vocabulary": {"vocab_size": 49500},
}


@pytest.mark.parametrize("settings", EXPRESSIBLE.values(), ids=EXPRESSIBLE.keys())
def test_there_and_back(settings: dict[str, Any]) -> None:
    source = model(**settings)
    theirs = to_transformers(source)
    assert same(source, theirs)
    again = to_open_clip(theirs)
    assert same(source, again) and same(theirs, again)
    ours = source.module.state_dict()
    for name, tensor in again.module.state_dict().items():
        assert torch.equal(tensor, ours[name] if name in ours else ours[f"text.{name}"])


def test_configuration_of_a_vit() -> None:
    """By hand from the tiny model's numbers."""
    config = to_transformers(model(quick_gelu=True, vision={"head_width": 16})).config
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_attention_heads, vision.intermediate_size) == (64, 4, 256)
    assert (vision.patch_size, vision.image_size, vision.num_hidden_layers, config.projection_dim) == (8, 32, 2, 32)
    assert (text.num_attention_heads, text.max_position_embeddings, text.vocab_size) == (2, 16, 49408)
    assert (text.bos_token_id, text.eos_token_id, vision.hidden_act) == (49406, 49407, "quick_gelu")


def test_trained_parameters_survive_in_float64() -> None:
    source = model()
    source.to("cpu", torch.float64)
    assert same(source, to_transformers(source), limit=1e-12)


def test_tokenizer_has_open_clips_ids() -> None:
    """Plain captions agree id for id up to the end token, the long one cut at the context length."""
    source = model()
    ours, theirs = source.tokenize(CAPTIONS), to_transformers(source).tokenize(CAPTIONS)
    assert theirs.shape == ours.shape
    for row, other, length in zip(ours, theirs, source.token_lengths(ours), strict=True):
        assert torch.equal(row[:length], other[:length])


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_image_processor_has_open_clips_settings(mode: str) -> None:
    base = model()
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": mode}
    source = OpenClip(base.module, base.config, base.tokenizer, "here", preprocess_config=settings)
    theirs = to_transformers(source)
    picture = Image.effect_noise((64, 44), 90).convert("RGB")  # 46×32 resized: both crop at a whole pixel
    assert (source.preprocess(picture) - theirs.preprocess(picture)).abs().max() < 0.05
    assert to_open_clip(theirs).preprocess_config == source.preprocess_config


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vision": {"timm_model_name": "test_efficientnet"}}, r"visual\.trunk \(timm test_efficientnet\)"),
    ({"vision": {"layers": [1, 1, 1, 1], "width": 16}}, r"visual \(ModifiedResNet\)"),
    ({"vision": {"attentional_pool": True, "attn_pooler_heads": 4}}, r"visual\.attn_pool"),
    ({"vision": {"pool_type": "avg"}}, r"vision_cfg\.pool_type='avg'"),
    ({"vision": {"no_ln_pre": True}}, r"visual\.ln_pre"),
    ({"vision": {"ls_init_value": 0.1}}, r"visual\.transformer\.resblocks\.0\.ls_1"),
    ({"ls_init_value": 0.1}, r" transformer\.resblocks\.0\.ls_1"),
    ({"vision": {"qk_norm": True}}, r"visual\.transformer\.resblocks\.0\.attn\.ln_q"),
    ({"vision": {"block_type": "custom", "scale_fc": True}}, r"mlp\.ln"),
    ({"vision": {"scaled_cosine_attn": True}}, r"attn\.logit_scale"),
    ({"vision": {"scale_heads": True}}, r"attn\.head_scale"),
    ({"vision": {"image_size": [32, 64]}}, r"vision_cfg\.image_size=32×64"),
    ({"vision": {"norm_kwargs": {"elementwise_affine": False}}}, r"LayerNorm in visual\.transformer"),
    ({"pool_type": "last"}, r"text_cfg\.pool_type='last'"),
    ({"pool_type": "eos", "eos_id": 2}, r"text_cfg\.pool_type='eos' with eos_id=2"),
    ({"no_causal_mask": True}, r"text_cfg\.no_causal_mask"),
    ({"custom": True, "embed_cls": True, "context_length": 15}, r"text\.cls_emb"),
    ({"custom": True, "proj_bias": True}, r"text_projection\.bias"),
    ({"custom": True, "proj_type": "none", "width": 32}, r"text_projection \(text_cfg\.proj_type='none'\)"),
]


@pytest.mark.parametrize(("settings", "layer"), REFUSED, ids=[layer for _, layer in REFUSED])
def test_what_clip_model_cannot_express_is_named(settings: dict[str, Any], layer: str) -> None:
    with pytest.raises(ExportError, match=layer) as caught:
        to_transformers(model(**settings))
    assert "--to open_clip" in str(caught.value) and "\n" not in str(caught.value)


def test_other_refusals() -> None:
    source = model()
    source.module.logit_bias = torch.nn.Parameter(torch.zeros(()))
    with pytest.raises(ExportError, match="logit_bias"):
        to_transformers(source)
    base = model()
    settings = base.preprocess_config | {"resize_mode": "longest"}
    with pytest.raises(ExportError, match="resize_mode='longest'"):
        to_transformers(OpenClip(base.module, base.config, base.tokenizer, "x", preprocess_config=settings))


@functools.cache
def whole_tokenizer() -> Any:
    return tiny.clip_tokenizer(16)


def clip_model(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> HuggingFaceClip:
    shared = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    text_config = shared | {"projection_dim": 24, "max_position_embeddings": 16} | (text or {})
    vision_config = shared | {"projection_dim": 24, "image_size": 32, "patch_size": 16} | (vision or {})
    torch.manual_seed(0)
    module = CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=24)).eval()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return HuggingFaceClip(module, CLIPProcessor(images, whole_tokenizer()), "here")


@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ({}, {}),
        ({"eos_token_id": 2}, {}),
        ({"vocab_size": 49600}, {}),
        ({"hidden_act": "gelu", "layer_norm_eps": 1e-6}, {"hidden_act": "gelu_new"}),
    ],
)
def test_clip_model_to_open_clip_and_back(text: dict[str, Any], vision: dict[str, Any]) -> None:
    """The legacy end id 2 and a vocabulary whose highest id is not the end included."""
    source = clip_model(text, vision)
    theirs = to_open_clip(source)
    assert same(source, theirs) and same(source, to_transformers(theirs))


@pytest.mark.parametrize(
    ("text", "vision", "key"),
    [
        ({"hidden_act": "relu"}, {"hidden_act": "relu"}, r"hidden_act='relu'"),
        ({"hidden_act": "gelu"}, {}, r"text_config\.hidden_act='gelu'"),
        ({}, {"num_channels": 1}, r"vision_config\.num_channels=1"),
    ],
)
def test_what_open_clip_cannot_express_is_named(text: dict[str, Any], vision: dict[str, Any], key: str) -> None:
    with pytest.raises(ExportError, match=key):
        to_open_clip(clip_model(text, vision))
