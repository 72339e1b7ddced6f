"""The U-Nets of ``diffusers``, and its other denoisers and autoencoders."""

from __future__ import annotations

import diffusers
import torch

from benchmarks.families.subject import Subject

__all__ = ["DIFFUSION"]

STEP = torch.tensor(7)


def signal(*shape: int) -> torch.Tensor:
    """Noise of this shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def sample(output: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The first of the outputs."""
    return output[0]


def unet_2d() -> Subject:
    """The unconditional U-Net of the first diffusion models."""
    module = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return Subject(module, (signal(1, 3, 8, 8), STEP), {"return_dict": False}, sample)


def unet_2d_condition(**more: object) -> Subject:
    """Stable Diffusion's U-Net with attention to a text."""
    settings = {
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "attention_head_dim": 2, "cross_attention_dim": 6,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **more,
    }  # fmt: skip
    module = diffusers.UNet2DConditionModel(**settings)
    return Subject(module, (signal(1, 4, 8, 8), STEP, signal(1, 3, 6)), {"return_dict": False}, sample)


def unet_sdxl() -> Subject:
    """SDXL's: linear projections, several transformer layers, sizes as an extra condition."""
    subject = unet_2d_condition(
        use_linear_projection=True, transformer_layers_per_block=(1, 2), addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 + 8,
    )  # fmt: skip
    subject.kwargs["added_cond_kwargs"] = {"text_embeds": signal(1, 6), "time_ids": signal(1, 2)}
    return subject


def unet_kandinsky() -> Subject:
    """Kandinsky's: residual down- and upsampling, attention with added keys, scale and shift by time."""
    module = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=6, down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    return Subject(module, (signal(1, 4, 8, 8), STEP, signal(1, 3, 6)), {"return_dict": False}, sample)


def unet_1d() -> Subject:
    """For audio and trajectories."""
    module = diffusers.UNet1DModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"), up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
        mid_block_type="UNetMidBlock1D", extra_in_channels=64, time_embedding_type="fourier",
        use_timestep_embedding=False,
    )  # fmt: skip
    return Subject(module, (signal(1, 4, 16), STEP), {"return_dict": False}, sample)


def unet_1d_reinforcement() -> Subject:
    """The planner of reinforcement learning (value function guided)."""
    module = diffusers.UNet1DModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"), up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock", time_embedding_type="positional",
        use_timestep_embedding=True, act_fn="mish",
    )  # fmt: skip
    return Subject(module, (signal(1, 4, 16), STEP), {"return_dict": False}, sample)


def unet_3d_condition() -> Subject:
    """Text to video."""
    module = diffusers.UNet3DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=6, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    return Subject(module, (signal(1, 4, 2, 8, 8), STEP, signal(1, 3, 6)), {"return_dict": False}, sample)


def unet_motion() -> Subject:
    """AnimateDiff's."""
    module = diffusers.UNetMotionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_attention_heads=2,
        cross_attention_dim=6, motion_num_attention_heads=2, motion_max_seq_length=4,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )  # fmt: skip
    return Subject(module, (signal(1, 4, 2, 8, 8), STEP, signal(1, 3, 6)), {"return_dict": False}, sample)


def unet_spatio_temporal() -> Subject:
    """Stable Video Diffusion's."""
    module = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        cross_attention_dim=6, num_attention_heads=(2, 4), addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    call = {"return_dict": False, "added_time_ids": signal(1, 3)}
    return Subject(module, (signal(1, 2, 4, 8, 8), STEP, signal(1, 1, 6)), call, sample)


def unet_vit() -> Subject:
    """UVit2D: a transformer between convolutions."""
    module = diffusers.UVit2DModel(
        hidden_size=16, cond_embed_dim=6, micro_cond_encode_dim=4, micro_cond_embed_dim=20, encoder_hidden_size=6,
        vocab_size=10, codebook_size=9, in_channels=8, block_out_channels=8, num_res_blocks=1, block_num_heads=2,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, sample_size=8,
    )  # fmt: skip
    ids = torch.arange(16).reshape(1, 4, 4) % 9
    return Subject(module, (ids, signal(1, 3, 6), signal(1, 6), signal(1, 5)), {})


def controlnet() -> Subject:
    """The encoder half that writes residuals for another U-Net; the middle one counts."""
    module = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2, cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), conditioning_embedding_out_channels=(4, 8),
    )  # fmt: skip
    args = (signal(1, 4, 8, 8), STEP, signal(1, 3, 6), signal(1, 3, 16, 16))
    return Subject(module, args, {"return_dict": False}, lambda out: out[1])


def autoencoder_kl() -> Subject:
    """Stable Diffusion's autoencoder, by the mode of its posterior."""
    module = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip
    return Subject(module, (signal(1, 3, 16, 16),), {"return_dict": False}, sample)


def dit() -> Subject:
    """A diffusion transformer with adaptive norms."""
    module = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=3, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    call = {"timestep": torch.tensor([7]), "class_labels": torch.tensor([3]), "return_dict": False}
    return Subject(module, (signal(1, 3, 8, 8),), call, sample)


def pixart() -> Subject:
    """PixArt: cross attention and one table of scales."""
    module = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=3, out_channels=6, num_layers=2, sample_size=8,
        patch_size=2, cross_attention_dim=8, caption_channels=6,
    )  # fmt: skip
    call = {
        "encoder_hidden_states": signal(1, 3, 6), "timestep": torch.tensor([7]), "return_dict": False,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    return Subject(module, (signal(1, 3, 8, 8),), call, sample)


def sd3() -> Subject:
    """Stable Diffusion 3: image and text in one attention."""
    module = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=6, caption_projection_dim=8, pooled_projection_dim=5, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    args = (signal(1, 4, 8, 8), signal(1, 3, 6), signal(1, 5), torch.tensor([7]))
    return Subject(module, args, {"return_dict": False}, sample)


def flux() -> Subject:
    """Flux: joint and single blocks, rotary positions in three axes."""
    module = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=6, pooled_projection_dim=5, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    call = {
        "hidden_states": signal(1, 4, 4), "encoder_hidden_states": signal(1, 3, 6), "pooled_projections": signal(1, 5),
        "timestep": torch.tensor([7.0]), "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3),
        "return_dict": False,
    }  # fmt: skip
    return Subject(module, (), call, sample)


DIFFUSION = {
    "unet_2d": unet_2d,
    "unet_2d_condition": unet_2d_condition,
    "unet_sdxl": unet_sdxl,
    "unet_kandinsky": unet_kandinsky,
    "unet_1d": unet_1d,
    "unet_1d_reinforcement": unet_1d_reinforcement,
    "unet_3d_condition": unet_3d_condition,
    "unet_motion": unet_motion,
    "unet_spatio_temporal": unet_spatio_temporal,
    "unet_vit": unet_vit,
    "controlnet": controlnet,
    "autoencoder_kl": autoencoder_kl,
    "dit": dit,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
}
