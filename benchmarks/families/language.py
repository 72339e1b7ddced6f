"""Language models of ``transformers``: causal, masked, encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from benchmarks.families.subject import Subject, attention, integers, log_factorial, logits, rotary_attention

__all__ = ["CAUSAL", "ENCODER_DECODER", "MASKED"]

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# 2 layers, a stream of 16, 4 heads of width 4, hidden layers of 24
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip
BATCHED = {"experts_implementation": "batched_mm"}  # no loop over the experts that some token chose
KV = {**SIZES, "num_key_value_heads": 2}
GPT = {"vocab_size": 32, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
PAIR = {
    "vocab_size": 32, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "decoder_start_token_id": 1,
}  # fmt: skip
T5 = {
    "vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "decoder_start_token_id": 1,
}  # fmt: skip

_MLP = log_factorial(16, 24, 24)  # the stream, the hidden layer of each block
PLAIN = _MLP + attention(4, 4, 2)
ROTARY = _MLP + rotary_attention(2, 2, 4, layers=2)
ROTARY_FULL = _MLP + rotary_attention(4, 1, 4, layers=2)


def make(config: str, model: str, sizes: dict[str, Any], **more: Any) -> Any:
    """A randomly initialised model by the names of its configuration and its class."""
    settings = getattr(transformers, config)(**{**SPECIAL, **sizes, **more})
    settings.use_cache = False
    return getattr(transformers, model)(settings)


def causal(
    config: str, model: str, sizes: dict[str, Any], log_order: float | None = None, **more: Any
) -> Callable[[], Subject]:
    """Next-token logits for five tokens."""
    call = {"input_ids": integers(2, 5), "use_cache": False}
    return lambda: Subject(make(config, model, sizes, **more), (), call, logits, log_order)


def masked(
    config: str, model: str, sizes: dict[str, Any], log_order: float | None = None, length: int = 5, **more: Any
) -> Callable[[], Subject]:
    """Logits of an encoder."""
    call = {"input_ids": integers(2, length)}
    return lambda: Subject(make(config, model, sizes, **more), (), call, logits, log_order)


def paired(
    config: str, model: str, sizes: dict[str, Any], log_order: float | None = None, length: int = 5, **more: Any
) -> Callable[[], Subject]:
    """Logits of a decoder that reads an encoder."""
    call = {"input_ids": integers(2, length), "decoder_input_ids": integers(2, 4), "use_cache": False}
    return lambda: Subject(make(config, model, sizes, **more), (), call, logits, log_order)


CAUSAL = {
    "gpt2": causal("GPT2Config", "GPT2LMHeadModel", GPT, PLAIN, n_inner=24),
    "openai_gpt": causal(
        "OpenAIGPTConfig", "OpenAIGPTLMHeadModel", GPT, log_factorial(16, 64, 64) + attention(4, 4, 2)
    ),
    "gpt_neo": causal(
        "GPTNeoConfig", "GPTNeoForCausalLM", SIZES, PLAIN, num_layers=2, num_heads=4, window_size=4,
        attention_types=[[["global", "local"], 1]],
    ),
    # a quarter of 8 dimensions is rotated
    "gpt_neox": causal(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", SIZES, log_factorial(32, 24, 24) + rotary_attention(4, 1, 8, 6, 2),
        hidden_size=32,
    ),
    "gptj": causal(
        "GPTJConfig", "GPTJForCausalLM", GPT, _MLP + rotary_attention(4, 1, 4, 2, 2), n_inner=24, rotary_dim=2
    ),
    "codegen": causal(
        "CodeGenConfig", "CodeGenForCausalLM", GPT, _MLP + rotary_attention(4, 1, 4, 2, 2), n_inner=24, rotary_dim=2
    ),
    # the constant slopes of ALiBi hold the heads
    "bloom": causal(
        "BloomConfig", "BloomForCausalLM", {"vocab_size": 32, "hidden_size": 16, "n_layer": 2, "n_head": 4},
        log_factorial(16, 64, 64) + 16 * log_factorial(4),
    ),
    "mpt": causal(
        "MptConfig", "MptForCausalLM",
        {"vocab_size": 32, "d_model": 16, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 32},
    ),
    "opt": causal("OPTConfig", "OPTForCausalLM", SIZES, PLAIN, ffn_dim=24, word_embed_proj_dim=16),
    "llama": causal("LlamaConfig", "LlamaForCausalLM", KV, ROTARY),
    "mistral": causal("MistralConfig", "MistralForCausalLM", KV, ROTARY, sliding_window=3),
    "mixtral": causal("MixtralConfig", "MixtralForCausalLM", KV, num_local_experts=3, num_experts_per_tok=2, **BATCHED),
    "qwen2": causal("Qwen2Config", "Qwen2ForCausalLM", KV, ROTARY),
    "qwen2_moe": causal(
        "Qwen2MoeConfig", "Qwen2MoeForCausalLM", KV, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8,
        shared_expert_intermediate_size=8, **BATCHED,
    ),
    "qwen3": causal("Qwen3Config", "Qwen3ForCausalLM", KV, head_dim=4),
    "gemma": causal("GemmaConfig", "GemmaForCausalLM", KV, ROTARY, head_dim=4),
    "gemma2": causal("Gemma2Config", "Gemma2ForCausalLM", KV, ROTARY, head_dim=4, sliding_window=4),
    "gemma3": causal("Gemma3TextConfig", "Gemma3ForCausalLM", KV, head_dim=4, sliding_window=4),
    "phi": causal("PhiConfig", "PhiForCausalLM", KV),
    "phi3": causal("Phi3Config", "Phi3ForCausalLM", KV, ROTARY),
    "falcon": causal("FalconConfig", "FalconForCausalLM", SIZES, new_decoder_architecture=True, num_kv_heads=2),
    "stablelm": causal("StableLmConfig", "StableLmForCausalLM", KV),
    "olmo": causal("OlmoConfig", "OlmoForCausalLM", KV),
    "olmo2": causal("Olmo2Config", "Olmo2ForCausalLM", KV),
    "cohere": causal("CohereConfig", "CohereForCausalLM", KV),
    "granite": causal("GraniteConfig", "GraniteForCausalLM", KV, ROTARY),
    "starcoder2": causal("Starcoder2Config", "Starcoder2ForCausalLM", KV, ROTARY),
    "gpt_bigcode": causal("GPTBigCodeConfig", "GPTBigCodeForCausalLM", GPT, n_inner=24),
    "nemotron": causal("NemotronConfig", "NemotronForCausalLM", KV),
    "glm": causal("GlmConfig", "GlmForCausalLM", KV, head_dim=4),
    "persimmon": causal("PersimmonConfig", "PersimmonForCausalLM", SIZES),
    "deepseek_v3": causal(
        "DeepseekV3Config", "DeepseekV3ForCausalLM", SIZES, num_key_value_heads=4, n_routed_experts=4, n_group=2,
        topk_group=1, num_experts_per_tok=2, moe_intermediate_size=8, first_k_dense_replace=1, kv_lora_rank=6,
        q_lora_rank=5, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, **BATCHED,
    ),
    "gpt_oss": causal(
        "GptOssConfig", "GptOssForCausalLM", KV, head_dim=4, num_local_experts=3, num_experts_per_tok=2,
        sliding_window=4, **BATCHED,
    ),
    "biogpt": causal("BioGptConfig", "BioGptForCausalLM", SIZES, PLAIN),
    "xglm": causal(
        "XGLMConfig", "XGLMForCausalLM",
        {"vocab_size": 32, "d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4},
    ),
    "ctrl": causal("CTRLConfig", "CTRLLMHeadModel", GPT, dff=24),
    "mamba": causal("MambaConfig", "MambaForCausalLM", SIZES, state_size=3, expand=2, time_step_rank=2),
    "mamba2": causal(
        "Mamba2Config", "Mamba2ForCausalLM", SIZES, state_size=4, expand=2, num_heads=4, head_dim=8, n_groups=2,
        chunk_size=4,
    ),
    "falcon_mamba": causal("FalconMambaConfig", "FalconMambaForCausalLM", SIZES, state_size=3, time_step_rank=2),
    "rwkv": causal("RwkvConfig", "RwkvForCausalLM", SIZES, context_length=16, attention_hidden_size=16),
    "recurrent_gemma": causal(
        "RecurrentGemmaConfig", "RecurrentGemmaForCausalLM", KV, lru_width=16, attention_window_size=4, head_dim=4,
        num_hidden_layers=3,
    ),
    "xlnet": masked(
        "XLNetConfig", "XLNetLMHeadModel", {"vocab_size": 32, "d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24}
    ),
}  # fmt: skip

_ALBERT = log_factorial(16, 24) + attention(4, 4)  # layers share their parameters

MASKED = {
    "bert": masked("BertConfig", "BertForMaskedLM", SIZES, PLAIN),
    "roberta": masked("RobertaConfig", "RobertaForMaskedLM", SIZES, PLAIN),
    "albert": masked("AlbertConfig", "AlbertForMaskedLM", SIZES, _ALBERT + log_factorial(8), embedding_size=8),
    "electra": masked("ElectraConfig", "ElectraForMaskedLM", SIZES, PLAIN + log_factorial(8), embedding_size=8),
    "distilbert": masked(
        "DistilBertConfig", "DistilBertForMaskedLM",
        {"vocab_size": 32, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 32},
        PLAIN,
    ),
    "mpnet": masked("MPNetConfig", "MPNetForMaskedLM", SIZES),
    "deberta": masked(
        "DebertaConfig", "DebertaForMaskedLM", SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"]
    ),
    "deberta_v2": masked(
        "DebertaV2Config", "DebertaV2ForMaskedLM", SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"],
        position_buckets=4, norm_rel_ebd="layer_norm", share_att_key=True,
    ),
    "xlm": masked(
        "XLMConfig", "XLMWithLMHeadModel",
        {"vocab_size": 32, "emb_dim": 16, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32},
    ),
    "squeezebert": masked(
        "SqueezeBertConfig", "SqueezeBertForMaskedLM", SIZES, embedding_size=16, q_groups=2, k_groups=2, v_groups=2,
        post_attention_groups=1, intermediate_groups=2, output_groups=2,
    ),
    "mobilebert": masked(
        "MobileBertConfig", "MobileBertForMaskedLM", SIZES, embedding_size=8, intra_bottleneck_size=8,
        true_hidden_size=8, num_attention_heads=2,
    ),
    "convbert": masked(
        "ConvBertConfig", "ConvBertForMaskedLM", SIZES, embedding_size=16, conv_kernel_size=3, head_ratio=2
    ),
    "funnel": masked(
        "FunnelConfig", "FunnelForMaskedLM",
        {"vocab_size": 32, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 16, "n_head": 4, "d_head": 4,
         "d_inner": 24}, length=8,
    ),
    "longformer": masked("LongformerConfig", "LongformerForMaskedLM", SIZES, length=8, attention_window=4),
    "big_bird": masked("BigBirdConfig", "BigBirdForMaskedLM", SIZES, attention_type="original_full"),
    "nystromformer": masked(
        "NystromformerConfig", "NystromformerForMaskedLM", SIZES, num_landmarks=4, length=8, segment_means_seq_len=8
    ),
    # the transform holds the stream; free are the embedding, tied to the head, and the hidden layers
    "fnet": masked("FNetConfig", "FNetForMaskedLM", SIZES, log_factorial(24, 24, 16)),
    # the table of rotations is a parameter: its two frequencies move with the Q/K dimensions of all layers
    "roformer": masked("RoFormerConfig", "RoFormerForMaskedLM", SIZES, ROTARY_FULL + log_factorial(2)),
    "esm": masked("EsmConfig", "EsmForMaskedLM", SIZES, position_embedding_type="rotary", mask_token_id=31),
    "modernbert": masked("ModernBertConfig", "ModernBertForMaskedLM", SIZES, cls_token_id=1, sep_token_id=2),
    "megatron_bert": masked("MegatronBertConfig", "MegatronBertForMaskedLM", SIZES, PLAIN),
    "rembert": masked("RemBertConfig", "RemBertForMaskedLM", SIZES, input_embedding_size=8, output_embedding_size=12),
    "layoutlm": masked("LayoutLMConfig", "LayoutLMForMaskedLM", SIZES, PLAIN),
    "ibert": masked("IBertConfig", "IBertForMaskedLM", SIZES, PLAIN),
    "canine": masked(
        "CanineConfig", "CanineForSequenceClassification", SIZES, num_hash_functions=4, num_hash_buckets=64,
        local_transformer_stride=4, downsampling_rate=4, upsampling_kernel_size=4, length=16,
    ),
    "perceiver": masked(
        "PerceiverConfig", "PerceiverForMaskedLM",
        {"num_latents": 5, "d_latents": 16, "num_blocks": 1, "num_self_attends_per_block": 2,
         "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "d_model": 16, "vocab_size": 32,
         "max_position_embeddings": 8, "qk_channels": 16, "v_channels": 16}, length=8,
    ),
}  # fmt: skip

# one embedding ties the streams of encoder and decoder; three attentions per pair of layers
PAIRED = log_factorial(16, 24, 24, 24, 24) + attention(4, 4, 6)
# a position bias, shared by the layers of a stack, makes their heads move together; the attention across has none
RELATIVE = (
    log_factorial(16, 24, 24, 24, 24) + 2 * (log_factorial(4) + 2 * 4 * 2 * log_factorial(4)) + attention(4, 4, 2)
)

ENCODER_DECODER = {
    "t5": paired("T5Config", "T5ForConditionalGeneration", T5, RELATIVE),
    "mt5": paired("MT5Config", "MT5ForConditionalGeneration", T5),
    "umt5": paired("UMT5Config", "UMT5ForConditionalGeneration", T5),
    "longt5": paired("LongT5Config", "LongT5ForConditionalGeneration", T5, local_radius=3, length=8),
    "switch_transformers": paired(
        "SwitchTransformersConfig", "SwitchTransformersForConditionalGeneration", T5, num_experts=3,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    ),
    "bart": paired("BartConfig", "BartForConditionalGeneration", PAIR, PAIRED),
    "mbart": paired("MBartConfig", "MBartForConditionalGeneration", PAIR, PAIRED),
    "pegasus": paired("PegasusConfig", "PegasusForConditionalGeneration", PAIR, PAIRED),
    "marian": paired("MarianConfig", "MarianMTModel", PAIR, PAIRED),
    # sinusoidal positions that are no parameters hold the stream
    "m2m_100": paired("M2M100Config", "M2M100ForConditionalGeneration", PAIR, PAIRED - log_factorial(16)),
    "blenderbot": paired("BlenderbotConfig", "BlenderbotForConditionalGeneration", PAIR, PAIRED),
    "led": paired(
        "LEDConfig", "LEDForConditionalGeneration", PAIR, attention_window=4, length=8,
        max_encoder_position_embeddings=32, max_decoder_position_embeddings=32,
    ),
    "prophetnet": paired(
        "ProphetNetConfig", "ProphetNetForConditionalGeneration",
        {"vocab_size": 32, "hidden_size": 16, "encoder_ffn_dim": 24, "num_encoder_layers": 2, "decoder_ffn_dim": 24,
         "num_encoder_attention_heads": 4, "num_decoder_layers": 2, "num_decoder_attention_heads": 4,
         "max_position_embeddings": 32, "num_buckets": 8, "relative_max_distance": 16, "ngram": 2},
    ),
    "pegasus_x": paired(
        "PegasusXConfig", "PegasusXForConditionalGeneration", PAIR, length=8, block_size=4, num_global_tokens=2
    ),
}  # fmt: skip
