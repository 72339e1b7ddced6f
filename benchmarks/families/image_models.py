"""Small members of the families of ``timm``, narrowed where their constructors allow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm

from benchmarks.families.subject import Subject, images

__all__ = ["IMAGE_MODELS"]


def model(name: str, size: int = 64, **settings: Any) -> Callable[[], Subject]:
    """Class logits of a randomly initialised model."""
    return lambda: Subject(timm.create_model(name, pretrained=False, num_classes=3, **settings), (images(size),))


IMAGE_MODELS = {
    # convolutional
    "resnet": model("resnet10t"),
    "resnext": model("resnext50_32x4d", layers=(1, 1, 1, 1), cardinality=4),
    "se_resnet": model("seresnet18", layers=(1, 1, 1, 1)),
    "sk_resnet": model("skresnet18", layers=(1, 1, 1, 1)),
    "res2net": model("res2net50_26w_4s", layers=(1, 1, 1, 1)),
    "resnest": model("resnest14d"),
    "resnetv2": model("resnetv2_50", layers=(1, 1, 1, 1)),
    "resnet_blur": model("resnetblur18"),
    "densenet": model("densenet121", growth_rate=4, block_config=(2, 2, 2, 2)),
    "dla": model("dla46_c"),
    "dpn": model("dpn48b"),
    "hrnet": model("hrnet_w18_small"),
    "inception_v3": model("inception_v3", 96),
    "inception_next": model("inception_next_atto"),
    "xception": model("xception41"),
    "darknet": model("darknet17"),
    "csp_resnet": model("cspresnet50"),
    "vovnet": model("ese_vovnet19b_slim_dw"),
    "selecsls": model("selecsls42"),
    "tresnet": model("tresnet_m"),
    "nf_net": model("test_nfnet"),
    "nf_regnet": model("nf_regnet_b0"),
    "regnet_x": model("regnetx_002"),
    "regnet_y": model("regnety_002"),
    "regnet_z": model("regnetz_005"),
    "repvgg": model("repvgg_a0"),
    "mobileone": model("mobileone_s0"),
    "rexnet": model("rexnet_100"),
    "ghostnet": model("ghostnet_050"),
    "ghostnetv2": model("ghostnetv2_100"),
    "repghostnet": model("repghostnet_050"),
    "mnasnet": model("mnasnet_small"),
    "mobilenetv2": model("mobilenetv2_035"),
    "mobilenetv3": model("mobilenetv3_small_050"),
    "mobilenetv4": model("mobilenetv4_conv_small_035"),
    "efficientnet": model("test_efficientnet"),
    "efficientnet_b0": model("efficientnet_b0"),
    "efficientnetv2": model("tf_efficientnetv2_b0"),
    "mixnet": model("mixnet_s"),
    "tinynet": model("tinynet_e"),
    "lcnet": model("lcnet_035"),
    "hardcorenas": model("hardcorenas_a"),
    "fbnetv3": model("fbnetv3_b"),
    "semnasnet": model("semnasnet_050"),
    "hgnet": model("hgnetv2_b0"),
    "convnext": model("test_convnext"),
    "convnextv2": model("test_convnext2"),
    "starnet": model("starnet_s050"),
    "repvit": model("repvit_m0_9"),
    "fasternet": model("fasternet_t0"),
    "bagnet": model("test_byobnet"),
    # attention
    "vit": model("test_vit", 160),
    "vit_rope": model("vit_small_patch16_rope_224", 32, img_size=32, embed_dim=24, depth=2, num_heads=2),
    "vit_sam": model(
        "samvit_base_patch16", 64, img_size=64, embed_dim=24, depth=2, num_heads=2, global_attn_indexes=(1,)
    ),
    "vit_register": model("vit_small_patch14_reg4_dinov2", 28, img_size=28, embed_dim=24, depth=2, num_heads=2),
    "deit3": model("deit3_small_patch16_224", 32, img_size=32, embed_dim=24, depth=2, num_heads=2),
    "deit_distilled": model("deit_tiny_distilled_patch16_224", 32, img_size=32, embed_dim=24, depth=2, num_heads=2),
    "beit": model("beit_base_patch16_224", 32, img_size=32, embed_dim=24, depth=2, num_heads=2),
    "eva": model("eva02_tiny_patch14_224", 28, img_size=28, embed_dim=24, depth=2, num_heads=2),
    "cait": model("cait_xxs24_224", 32, img_size=32, embed_dim=24, depth=2, num_heads=2),
    "xcit": model("xcit_nano_12_p16_224", 32, img_size=32, embed_dim=24, depth=2, num_heads=2),
    "convit": model("convit_tiny", 32, img_size=32, embed_dim=24, depth=2, local_up_to_layer=1, num_heads=2),
    "crossvit": model("crossvit_tiny_240", 240),
    "coat": model("coat_lite_tiny", 224),
    "coatnet": model("coatnet_pico_rw_224", 224),
    "maxvit": model("maxvit_pico_rw_256", 256),
    "swin": model("swin_tiny_patch4_window7_224", 56, img_size=56, embed_dim=24, depths=(2, 1), num_heads=(2, 4)),
    "swinv2": model("swinv2_tiny_window8_256", 64, img_size=64, embed_dim=24, depths=(2, 1), num_heads=(2, 4)),
    "swin_cr": model(
        "swinv2_cr_tiny_224", 56, img_size=56, embed_dim=24, depths=(2, 1), num_heads=(2, 4), window_size=7
    ),
    "pit": model("pit_ti_224", 224),
    "pvt_v2": model("pvt_v2_b0"),
    "twins": model("twins_svt_small", 64, img_size=64),
    "tnt": model(
        "tnt_s_legacy_patch16_224",
        32,
        img_size=32,
        embed_dim=24,
        inner_dim=8,
        depth=2,
        num_heads_outer=2,
        num_heads_inner=2,
    ),
    "nest": model("nest_tiny", 64, img_size=64),
    "visformer": model("visformer_tiny", 64, img_size=64),
    "volo": model("volo_d1_224", 224),
    "levit": model("levit_128s", 224),
    "mvitv2": model("mvitv2_tiny", 64, img_size=64),
    "davit": model("davit_tiny", embed_dims=(12, 24, 48, 96), depths=(1, 1, 1, 1)),
    "gcvit": model("gcvit_xxtiny", 224),
    "hiera": model("hiera_tiny_224", 224),
    "focalnet": model("focalnet_tiny_srf"),
    "edgenext": model("edgenext_xx_small"),
    "efficientformer": model("efficientformer_l1", 224),
    "efficientformerv2": model("efficientformerv2_s0", 224),
    "efficientvit": model("efficientvit_b0"),
    "efficientvit_m": model("efficientvit_m0", 224),
    "fastvit": model("fastvit_t8"),
    "mobilevit": model("mobilevit_xxs"),
    "mobilevitv2": model("mobilevitv2_050"),
    "nextvit": model("nextvit_small"),
    "tiny_vit": model("tiny_vit_5m_224", 224),
    "vitamin": model("vitamin_small_224", 224),
    "shvit": model("shvit_s1"),
    "swiftformer": model("swiftformer_xs"),
    "botnet": model("botnet26t_256", 256),
    "halonet": model("halonet26t", 256),
    "lambda_resnet": model("lambda_resnet26t"),
    # neither
    "mixer": model("mixer_s32_224", 64, img_size=64),
    "resmlp": model("resmlp_12_224", 64, img_size=64),
    "gmlp": model("gmlp_ti16_224", 64, img_size=64),
    "sequencer": model("sequencer2d_s", 56, img_size=56),
    "poolformer": model("poolformer_s12"),
    "convformer": model("convformer_s18"),
    "caformer": model("caformer_s18"),
    "mambaout": model("test_mambaout"),
}
