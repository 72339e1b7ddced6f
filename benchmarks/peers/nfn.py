"""NFN and NFT (github.com/AllanYangZhou/nfn): needs einops and the Perceiver folder beside its experiments.

The configuration of NFT for classification names a class that is not in the repository; four of its blocks are stacked
here between the encodings of its autoencoder and the head which that configuration names.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.peers.case import Case, weights_of
from benchmarks.peers.subject import TorchSubject, alone, layers_of, put_on_path


def build(case: Case, options: dict[str, Any], folder: Path) -> TorchSubject:
    """``options``: ``mode`` ("NP", "NP-PosEmb", "HNP" or "NFT"), ``channels`` of every layer, ``fourier`` features."""
    put_on_path(folder / "nfn", folder / "nfn" / "experiments" / "perceiver-pytorch")
    common, models, layers = map(import_module, ("nfn.common", "experiments.models", "nfn.layers"))

    def features(weights):
        matrices, biases = layers_of(weights)
        return common.WeightSpaceFeatures([w.unsqueeze(1) for w in matrices], [b.unsqueeze(1) for b in biases])

    def prepare(weights):
        given = features(weights)
        return lambda: given

    spec = common.network_spec_from_wsfeat(features(weights_of(case, 2)), set_all_dims=case.name == "A")
    fourier, channels = options.get("fourier"), options["channels"]
    if options["mode"] == "NFT":
        head = models.PerceiverNet(
            spec, channels[0], False, case.out_features, self_per_cross_attn=0, num_latents=16, latent_dim=256,
            cross_dim_head=256, dropout=0.0, pool_latents=False,
        )  # fmt: skip
        model = nn.Sequential(
            layers.GaussianFourierFeatureTransform(spec, 1, mapping_size=channels[0] // 2, scale=3),
            layers.LearnedPosEmbedding(spec, channels[0]),
            *(models.Block(spec, w, num_heads=options["heads"], share_projections=case.name == "A") for w in channels),
            head,
        )
    else:
        model = models.InvariantNFN(
            spec, channels, partial(models.MlpHead, num_out=case.out_features), mode=options["mode"],
            inp_enc_cls=partial(layers.GaussianFourierFeatureTransform, mapping_size=fourier) if fourier else None,
            pos_enc_cls=partial(layers.IOSinusoidalEncoding, enc_layers=False) if options.get("places") else None,
        )  # fmt: skip
    return TorchSubject(model, alone(prepare))
