"""Speech, time series and trajectories: models of ``transformers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.families.language import make
from benchmarks.families.subject import Subject, integers, logits

__all__ = ["SIGNALS"]

WAVE = {
    "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip


def signal(*shape: int) -> torch.Tensor:
    """Noise of this shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def speech(config: str, model: str, **more: Any) -> Callable[[], Subject]:
    """Letters for a wave."""
    return lambda: Subject(make(config, model, {**WAVE, **more}), (), {"input_values": signal(2, 400)}, logits)


def whisper() -> Subject:
    """Encoder of spectrograms, decoder of text."""
    module = make(
        "WhisperConfig", "WhisperForConditionalGeneration",
        {"vocab_size": 32, "num_mel_bins": 6, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
         "max_source_positions": 10, "max_target_positions": 16, "decoder_start_token_id": 1},
    )  # fmt: skip
    call = {"input_features": signal(2, 6, 20), "decoder_input_ids": integers(2, 4), "use_cache": False}
    return Subject(module, (), call, logits)


def speech_to_text() -> Subject:
    """Convolutions halve the time, then an encoder and a decoder."""
    module = make(
        "Speech2TextConfig", "Speech2TextForConditionalGeneration",
        {"vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "input_feat_per_channel": 6,
         "conv_channels": 8, "max_source_positions": 32, "max_target_positions": 16, "decoder_start_token_id": 1},
    )  # fmt: skip
    call = {"input_features": signal(2, 20, 6), "decoder_input_ids": integers(2, 4), "use_cache": False}
    return Subject(module, (), call, logits)


def spectrogram() -> Subject:
    """A vision transformer on spectrograms (AST)."""
    module = make(
        "ASTConfig", "ASTForAudioClassification",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "patch_size": 4,
         "frequency_stride": 4, "time_stride": 4, "max_length": 16, "num_mel_bins": 8, "num_labels": 3},
    )  # fmt: skip
    return Subject(module, (), {"input_values": signal(2, 16, 8)}, logits)


def forecaster(config: str, model: str, **more: Any) -> Subject:
    """Patches of a series in, forecasts out."""
    sizes = {
        "num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "prediction_length": 4,
        "d_model": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24, "num_layers": 2, **more,
    }  # fmt: skip
    module = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    return Subject(module, (), {"past_values": signal(2, 16, 2)}, lambda out: out.prediction_outputs)


def time_series(prefix: str, **more: Any) -> Subject:
    """Encoder-decoder over lagged values; the parameters of the forecast distribution count."""
    config = getattr(transformers, f"{prefix}Config")(
        prediction_length=4, context_length=8, input_size=1, lags_sequence=[1, 2], num_time_features=2, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24,
        decoder_ffn_dim=24, use_cache=False, scaling=False, **more,
    )  # fmt: skip
    call = {
        "past_values": signal(2, 10), "past_time_features": signal(2, 10, 2), "past_observed_mask": torch.ones(2, 10),
        "future_values": signal(2, 4), "future_time_features": signal(2, 4, 2),
    }  # fmt: skip
    return Subject(getattr(transformers, f"{prefix}ForPrediction")(config), (), call, lambda out: out.params)


def decision() -> Subject:
    """GPT-2 over returns, states and actions."""
    config = transformers.DecisionTransformerConfig(
        state_dim=3, act_dim=2, hidden_size=16, n_layer=2, n_head=4, n_inner=24, max_ep_len=16, n_positions=32
    )
    call = {
        "states": signal(2, 4, 3), "actions": signal(2, 4, 2), "rewards": signal(2, 4, 1),
        "returns_to_go": signal(2, 4, 1), "timesteps": integers(2, 4, below=8), "attention_mask": torch.ones(2, 4),
    }  # fmt: skip
    return Subject(transformers.DecisionTransformerModel(config), (), call, lambda out: out.action_preds)


SIGNALS = {
    "whisper": whisper,
    "wav2vec2": speech("Wav2Vec2Config", "Wav2Vec2ForCTC"),
    "hubert": speech("HubertConfig", "HubertForCTC"),
    "wavlm": speech("WavLMConfig", "WavLMForCTC", num_buckets=8, max_bucket_distance=16),
    "unispeech": speech("UniSpeechConfig", "UniSpeechForCTC"),
    "data2vec_audio": speech(
        "Data2VecAudioConfig", "Data2VecAudioForCTC", num_conv_pos_embeddings=1, conv_pos_kernel_size=3
    ),
    "sew": speech("SEWConfig", "SEWForCTC", squeeze_factor=2),
    "speech_to_text": speech_to_text,
    "audio_spectrogram_transformer": spectrogram,
    "patchtst": lambda: forecaster("PatchTSTConfig", "PatchTSTForPrediction"),
    "patchtsmixer": lambda: forecaster("PatchTSMixerConfig", "PatchTSMixerForPrediction"),
    "time_series_transformer": lambda: time_series("TimeSeriesTransformer"),
    "informer": lambda: time_series("Informer"),
    "autoformer": lambda: time_series("Autoformer", label_length=4),
    "decision_transformer": decision,
}  # fmt: skip
