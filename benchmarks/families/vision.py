"""Vision models of ``transformers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from benchmarks.families.language import make
from benchmarks.families.subject import Subject, attention, images, integers, log_factorial, logits

__all__ = ["VISION"]

# 4 patches of 8 x 8, 2 layers, a stream of 16, 4 heads of width 4, hidden layers of 24
VIT = {
    "image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24, "num_labels": 3,
}  # fmt: skip
PLAIN = log_factorial(16, 24, 24) + attention(4, 4, 2)
STAGES = {"depths": [1, 1, 1, 1], "num_labels": 3}
FOUR = {**STAGES, "hidden_sizes": [8, 12, 16, 20]}
EIGHTS = {**STAGES, "hidden_sizes": [32, 32, 64, 64]}
_CONVNEXT = log_factorial(8, 12, 16, 20, 32, 48, 64, 80)
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def classifier(
    config: str, model: str, sizes: dict[str, Any], log_order: float | None = None, size: int = 16, **more: Any
) -> Callable[[], Subject]:
    """Logits for images."""
    call = {"pixel_values": images(size)}
    return lambda: Subject(_vision(config, model, sizes, **more), (), call, logits, log_order)


def _vision(config: str, model: str, sizes: dict[str, Any], **more: Any) -> Any:
    settings = getattr(transformers, config)(**{**sizes, **more})
    return getattr(transformers, model)(settings)


def clip(prefix: str, **text: Any) -> Subject:
    """Similarities of two images and three texts."""
    words = {**TOWER, "vocab_size": 32, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 31, **text}
    config = getattr(transformers, f"{prefix}Config")(
        text_config=words, vision_config={**TOWER, "image_size": 16, "patch_size": 8}, projection_dim=10
    )
    call = {"input_ids": integers(3, 6), "pixel_values": images(16)}
    return Subject(getattr(transformers, f"{prefix}Model")(config), (), call, lambda out: out.logits_per_image)


def sam_vision() -> Subject:
    """SAM's image encoder: windowed and global attention with relative positions."""
    config = transformers.SamVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, mlp_dim=24, output_channels=6, image_size=32,
        patch_size=8, window_size=2, global_attn_indexes=[1],
    )  # fmt: skip
    return Subject(transformers.SamVisionModel(config), (), {"pixel_values": images(32)}, lambda out: out[0])


def segmenter() -> Subject:
    """SegFormer with its decoder of perceptrons."""
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 12, 12], num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=10,
        num_labels=3,
    )  # fmt: skip
    return Subject(transformers.SegformerForSemanticSegmentation(config), (), {"pixel_values": images(64)}, logits)


def detr() -> Subject:
    """Object queries on a small ResNet."""
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone, backbone=None, use_timm_backbone=False, use_pretrained_backbone=False, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24,
        decoder_ffn_dim=24, num_queries=5,
    )  # fmt: skip
    return Subject(transformers.DetrForObjectDetection(config), (), {"pixel_values": images(32)}, logits)


def video() -> Subject:
    """Divided attention over space and time."""
    config = transformers.TimesformerConfig(**VIT, num_frames=2)
    frames = images(16)[:, None].expand(-1, 2, -1, -1, -1).clone()
    return Subject(transformers.TimesformerForVideoClassification(config), (), {"pixel_values": frames}, logits)


VISION = {
    "vit": classifier("ViTConfig", "ViTForImageClassification", VIT, PLAIN),
    "deit": classifier("DeiTConfig", "DeiTForImageClassification", VIT, PLAIN),
    "beit": classifier("BeitConfig", "BeitForImageClassification", VIT, use_relative_position_bias=True),
    "data2vec_vision": classifier("Data2VecVisionConfig", "Data2VecVisionForImageClassification", VIT),
    "dinov2": classifier("Dinov2Config", "Dinov2ForImageClassification", VIT, mlp_ratio=2),
    "dinov3_vit": lambda: Subject(
        _vision("DINOv3ViTConfig", "DINOv3ViTModel", VIT, num_register_tokens=2), (), {"pixel_values": images(16)},
        lambda out: out.last_hidden_state,
    ),
    "ijepa": classifier("IJepaConfig", "IJepaForImageClassification", VIT, PLAIN),
    "vit_msn": classifier("ViTMSNConfig", "ViTMSNForImageClassification", VIT, PLAIN),
    "yolos": classifier("YolosConfig", "YolosForObjectDetection", VIT, image_size=[16, 16], num_detection_tokens=3),
    "swin": classifier(
        "SwinConfig", "SwinForImageClassification", {"num_labels": 3}, image_size=32, patch_size=4, embed_dim=8,
        depths=[2, 1], num_heads=[2, 4], window_size=4, size=32,
    ),
    "swinv2": classifier(
        "Swinv2Config", "Swinv2ForImageClassification", {"num_labels": 3}, image_size=32, patch_size=4, embed_dim=8,
        depths=[2, 1], num_heads=[2, 4], window_size=4, size=32,
    ),
    # a stream per stage, the hidden layer of each block
    "convnext": classifier(
        "ConvNextConfig", "ConvNextForImageClassification", FOUR, _CONVNEXT, size=32
    ),
    # global response norm keeps channels apart
    "convnextv2": classifier(
        "ConvNextV2Config", "ConvNextV2ForImageClassification", FOUR, _CONVNEXT, size=32
    ),
    # a stream per stage (the embedding is the first one's), the inside of each block
    "resnet": classifier(
        "ResNetConfig", "ResNetForImageClassification", FOUR, log_factorial(8, 8, 12, 12, 16, 16, 20, 20), size=32,
        embedding_size=8, layer_type="basic",
    ),
    "regnet": classifier(
        "RegNetConfig", "RegNetForImageClassification", FOUR, embedding_size=8, groups_width=4, size=32
    ),
    "bit": classifier("BitConfig", "BitForImageClassification", EIGHTS, embedding_size=8, num_groups=2, size=32),
    "segformer": segmenter,
    "levit": classifier(
        "LevitConfig", "LevitForImageClassification", {"num_labels": 3}, image_size=32, hidden_sizes=[8, 12, 16],
        num_attention_heads=[2, 2, 4], depths=[1, 1, 1], key_dim=[4, 4, 4], mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2], size=32,
    ),
    "poolformer": classifier(
        "PoolFormerConfig", "PoolFormerForImageClassification", FOUR, size=32, mlp_ratio=2.0
    ),
    "pvt": classifier(
        "PvtConfig", "PvtForImageClassification", FOUR, size=32, image_size=32, num_attention_heads=[1, 2, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "pvt_v2": classifier(
        "PvtV2Config", "PvtV2ForImageClassification", FOUR, size=32, image_size=32, num_attention_heads=[1, 2, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "mobilevit": classifier(
        "MobileViTConfig", "MobileViTForImageClassification", {"num_labels": 3}, hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[4, 4, 8, 8, 12, 12, 16], num_attention_heads=2, size=32, image_size=32,
    ),
    "mobilevitv2": classifier(
        "MobileViTV2Config", "MobileViTV2ForImageClassification", {"num_labels": 3}, width_multiplier=0.1, size=64,
        image_size=64, n_attn_blocks=[1, 1, 1], base_attn_unit_dims=[80, 80, 80],
    ),
    "mobilenet_v1": classifier(
        "MobileNetV1Config", "MobileNetV1ForImageClassification", {"num_labels": 3}, depth_multiplier=0.1, size=32
    ),
    "mobilenet_v2": classifier(
        "MobileNetV2Config", "MobileNetV2ForImageClassification", {"num_labels": 3}, depth_multiplier=0.1, size=32
    ),
    "efficientnet": classifier(
        "EfficientNetConfig", "EfficientNetForImageClassification", {"num_labels": 3}, width_coefficient=0.1,
        depth_coefficient=0.3, hidden_dim=128, size=32,
    ),
    "cvt": classifier(
        "CvtConfig", "CvtForImageClassification", {"num_labels": 3}, embed_dim=[8, 12, 16], num_heads=[1, 2, 2],
        depth=[1, 2, 3], cls_token=[False, False, True], size=32,
    ),
    "focalnet": classifier(
        "FocalNetConfig", "FocalNetForImageClassification", STAGES, image_size=32, embed_dim=8,
        hidden_sizes=[8, 16, 32, 64], size=32,
    ),
    "hiera": classifier(
        "HieraConfig", "HieraForImageClassification", {"num_labels": 3}, embed_dim=8, image_size=[32, 32],
        patch_size=[4, 4], patch_stride=[4, 4], patch_padding=[0, 0], depths=[1, 1], num_heads=[1, 2], num_query_pool=1,
        query_stride=[2, 2],
        masked_unit_size=[4, 4], masked_unit_attention=[True, False], size=32,
    ),
    "swiftformer": classifier(
        "SwiftFormerConfig", "SwiftFormerForImageClassification", {"num_labels": 3}, depths=[1, 1, 1, 1],
        embed_dims=[8, 12, 16, 20], size=32,
    ),
    "clip": lambda: clip("CLIP"),
    "siglip": lambda: clip("Siglip"),
    "sam_vision": sam_vision,
    "detr": detr,
    "timesformer": video,
    "imagegpt": lambda: Subject(
        make("ImageGPTConfig", "ImageGPTForCausalImageModeling",
             {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}),
        (), {"input_ids": integers(2, 5), "use_cache": False}, logits,
    ),
}  # fmt: skip
