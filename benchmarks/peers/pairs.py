"""Which of our metanetworks stands next to which public code, with the configurations of both.

``published``: the configuration the public code was published with for that case, and ours of the same sizes;
``equal``: 4 layers of 64 channels on both sides, heads as they are. A metanetwork that is not named here is measured
with its default options and nothing beside it. On the mixed batch public code has the widths that its configuration
files have by default. Where public code cannot read a batch, the reason is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from weightspace.metanets import metanet_names

__all__ = ["Pair", "Row", "pairs"]

_FOUR = {"width": 64, "layers": 4}
_META_LAYER = "PyG MetaLayer, 4 x 64"
_LABELLED = ("ends", "positions", "bidirectional", "dense", "set_heads")
"""Options that are named in the table where they are set."""


@dataclass(frozen=True)
class Row:
    """One model: the file of this folder that builds it, and the options it is given; variants are not ``main``.

    ``compiled`` ones go through ``torch.compile``.
    """

    name: str
    maker: str
    options: dict[str, Any]
    main: bool = True
    compiled: bool = False


@dataclass(frozen=True)
class Pair:
    """Models that are measured in turns: ours, and the public code beside them. Shares are of the first of ours.

    ``cannot`` has public code that does not read this batch, and why.
    """

    size: str
    case: str
    ours: tuple[Row, ...]
    peers: tuple[Row, ...] = ()
    cannot: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> set[str]:
        """Names of our metanetworks in it."""
        return {row.options["name"] for row in self.ours}

    @property
    def main(self) -> Pair:
        """The same without variants, and without metanetworks that stand alone."""
        if not self.peers and not self.cannot:
            return replace(self, ours=())
        return replace(self, **{side: tuple(r for r in getattr(self, side) if r.main) for side in ("ours", "peers")})


def _ours(name: str, **config: Any) -> Row:
    labels = "".join(f", {key} {value}".replace(" True", "") for key, value in config.items() if key in _LABELLED)
    return Row(name + labels, "ours", {"name": name, "config": config})


def _variant(row: Row) -> Row:
    return replace(row, main=False)


def _with_compiled(pair: Pair) -> list[Pair]:
    """A pair, and the first of ours compiled, next to public code as it is and compiled."""
    made = lambda row: replace(row, name=f"{row.name}, compiled", compiled=True, main=False)  # noqa: E731
    peer = pair.peers[0]
    return [pair, replace(pair, ours=(made(pair.ours[0]),), peers=(_variant(peer), made(peer)))]


def _linear() -> list[Pair]:
    """DWS, NFN and UNF."""

    def dws(layer: str, **sizes: int) -> Row:
        return Row(f"DWSNets, {layer}", "dws_net", {"reduction": "max", "bn": True, "set_layer": layer, **sizes})

    attentive, sab = _variant(_ours("dws", set_heads=8)), _variant(dws("sab", hidden_dim=32, n_hidden=4))
    nfn = lambda mode, **more: Row(f"nfn {mode}", "nfn", {"mode": mode, **more})  # noqa: E731
    unf = lambda **sizes: Row("universal_neural_functional", "unf", sizes)  # noqa: E731
    inr, cnn = {"channels": [512] * 3, "fourier": 128}, {"channels": [16, 16, 5]}
    wide, narrow = {"frequencies": 128}, {"width": 16}
    sets = {"ends": "sets", "positions": "sets"}
    both = lambda **more: (_ours("nfn", ends="sets", **more), _variant(_ours("nfn", ends="channels", **more)))  # noqa: E731
    return [
        *_with_compiled(Pair("published", "A", (_ours("dws"), attentive), (dws("ds", hidden_dim=32, n_hidden=4), sab))),
        Pair("published", "B", (_ours("dws"),), cannot=(("DWSNets", "reads multilayer perceptrons only"),)),
        *_with_compiled(Pair("equal", "A", (_ours("dws", **_FOUR),), (dws("ds", hidden_dim=64, n_hidden=3),))),
        Pair("published", "A", both(**wide), (nfn("NP", places=True, **inr), _variant(nfn("HNP", **inr)))),
        Pair("published", "B", both(**narrow), (nfn("NP-PosEmb", **cnn), _variant(nfn("HNP", **cnn)))),
        *(
            Pair("equal", case, both(**_FOUR), (nfn("NP", channels=[64] * 4), nfn("HNP", channels=[64] * 4)))
            for case in "AB"
        ),
        Pair("published", "A", (_ours("unf"),), (unf(width=32, layers=3),)),
        Pair("published", "B", (_ours("unf", **sets), _variant(_ours("unf"))), (unf(width=32, layers=3),)),
        Pair("equal", "A", (_ours("unf", **_FOUR),), (unf(**_FOUR),)),
        Pair("equal", "B", (_ours("unf", **sets, **_FOUR),), (unf(**_FOUR),)),
    ]


def _transformers() -> list[Pair]:
    """NFT and NG-T."""
    nft = lambda width: Row("nfn NFT, stacked", "nfn", {"mode": "NFT", "channels": [width] * 4, "heads": 8})  # noqa: E731
    ours = lambda width: _ours("nft", width=width, heads=8, layers=4, expansion=2, frequencies=width // 2)  # noqa: E731
    keys = ("d_node", "d_edge", "d_attn_hid", "d_node_hid", "d_edge_hid", "d_out_hid")
    config = ("width", "edge_width", "attention_width", "node_hidden", "edge_hidden", "head_width")

    def graph(*sizes: int) -> dict[str, Any]:
        given = zip(keys, sizes, strict=True)
        peer = {"overrides": ["model=rtransformer", *(f"model.{key}={size}" for key, size in given)]}
        options = dict(zip(config, sizes, strict=True))
        name = "neural_graph_transformer"
        return {
            "ours": (_ours(name, **options), _variant(_ours(name, dense=True, **options))),
            "peers": (Row("neural-graphs NG-T", "neural_graphs", peer),),
        }

    return [
        Pair("published", "A", (_variant(ours(256)),), (_variant(nft(256)),)),
        Pair("equal", "B", (ours(64),)),
        Pair("equal", "A", (ours(64),), (nft(64),)),
        Pair("published", "A", **graph(64, 32, 128, 128, 64, 128)),
        Pair("published", "B", **graph(128, 64, 256, 256, 128, 256)),
        *(Pair("equal", case, **graph(*[64] * 6)) for case in "AB"),
    ]


def _messages() -> list[Pair]:
    """NG-GNN, ScaleGMN, GMN and the operator network."""

    def neural_graph(width: int, reverse: bool, *overrides: str) -> dict[str, Any]:
        peer = ["model=pna", f"model.d_hid={width}", f"model.rev_edge_features={reverse}", *overrides]
        ours = _ours("neural_graph", width=width, edge_width=width, head_width=width, reverse=reverse)
        return {"ours": (ours,), "peers": (Row("neural-graphs NG-GNN", "neural_graphs", {"overrides": peer}),)}

    def scale(case: str, **sizes: int) -> list[Pair]:
        folder, size = (
            {"A": "mnist_cls/scalegmn", "B": "cifar10/scalegmn_relu"}[case],
            "equal" if sizes else "published",
        )
        peers = {
            end: Row(f"scalegmn{end}", "scale_gmn", {"config": f"{folder}{end}.yml", **sizes}) for end in ("", "_bidir")
        }
        config = {"readout": "last_layer", **sizes}
        ours = _ours("scale_gmn", bidirectional=True, **config)
        forward = Pair(size, case, (_ours("scale_gmn", **config),), (peers[""],))
        both = Pair(size, case, (_variant(ours),), (_variant(peers["_bidir"]),))
        return [*_with_compiled(forward), both] if case == "B" else [forward, both]

    meta = (Row(_META_LAYER, "meta_layer", {"width": 64, "rounds": 4}),)
    wide = _ours("gmn", **_FOUR, edge_width=64, edge_units=64)
    return [
        Pair("published", "A", **neural_graph(32, True)),
        Pair("published", "B", **neural_graph(256, False, "data.linear_as_conv=False")),
        *(Pair("equal", case, **neural_graph(64, True)) for case in "AB"),
        *(pair for case in "AB" for pair in (*scale(case), *scale(case, **_FOUR))),
        *(Pair("published", case, (_ours("gmn"), _ours("operator")), meta) for case in "AB"),
        *(Pair("equal", case, (wide, _ours("operator", **_FOUR)), meta) for case in "AB"),
    ]


def _mixed() -> Pair:
    """One batch of several architectures."""
    keys = ("d_node", "d_edge", "d_attn_hid", "d_node_hid", "d_edge_hid", "d_out_hid")
    sizes = (f"model.{key}={size}" for key, size in zip(keys, (64, 32, 128, 128, 64, 128), strict=True))
    small = ["model=pna", "model.d_hid=32"]
    fixed = "its parameters belong to the layers of one architecture"
    return Pair(
        "published",
        "mixed",
        (
            Row("shared_operator", "ours", {"name": "shared_operator"}),
            Row("shared_gmn", "ours", {"name": "shared_gmn"}),
        ),
        (
            Row("neural-graphs NG-GNN", "neural_graphs", {"overrides": small}),
            Row("neural-graphs NG-T", "neural_graphs", {"overrides": ["model=rtransformer", *sizes]}),
            Row("scalegmn", "scale_gmn", {"config": "cifar10/scalegmn_relu.yml", "readout": "full_graph"}),
            Row(_META_LAYER, "meta_layer", {"width": 64, "rounds": 4}),
        ),
        (("DWSNets", "reads multilayer perceptrons only"), ("nfn", fixed), ("universal_neural_functional", fixed)),
    )


def _resnet() -> Pair:
    """A ResNet-50: 25.6 million weights between 15.4 million pairs of 27,563 channels; no public code reads it."""
    chains = "reads chains of layers: no skip connections, no norms"
    dense = "a dense matrix of 27,563 channels by as many with 7x7 positions takes 149 GB"
    edges = "30.9 million edges both ways: end states, edge states and their concatenation take 47 GB"
    lean = {"width": 32, "heads": 4, "layers": 2, "function_units": 8}
    return Pair(
        "published",
        "resnet50",
        (_ours("operator"), Row("operator, lean", "ours", {"name": "operator", "config": lean})),
        cannot=(
            ("DWSNets", "reads multilayer perceptrons only"),
            ("nfn", chains),
            (
                "universal_neural_functional",
                "not tried: terms for each of 25,921 pairs of tensors in every layer",
            ),
            ("neural-graphs NG-GNN", dense),
            ("neural-graphs NG-T", dense),
            ("scalegmn", chains),
            (_META_LAYER, edges),
        ),
    )


def pairs() -> list[Pair]:
    """All pairs, with every metanetwork there is."""
    table = [*_linear(), *_transformers(), *_messages(), _mixed(), _resnet()]
    known = set().union(*(pair.names for pair in table))
    alone = tuple(_ours(name) for name in metanet_names() if name not in known)
    return table + [Pair("published", case, alone) for case in "AB" if alone]
