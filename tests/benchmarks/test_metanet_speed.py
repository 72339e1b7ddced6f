"""The script that measures metanetworks beside public code: rows, limits, resumption, table, and what it compares."""

import argparse
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.process import Process
from benchmarks.metanet_speed import batches_of, is_there, measure, rows_in, store, too_large
from benchmarks.peers.case import CASES, CNN, INR, MIXED, parts_of
from benchmarks.peers.graphs import graph_batch
from benchmarks.peers.kinds import KINDS, kind_of, seconds_by_kind
from benchmarks.peers.meta_layer import TextbookGraphNetwork
from benchmarks.peers.pairs import Pair, Row, pairs
from benchmarks.peers.table import by_allocator, in_pairs, limits

HEAD = {"case": "A", "networks": 64, "size": "published", "of": "ours", "allocator": "default", "threads": 1}
MLP = Row("mlp", "ours", {"name": "mlp"})


def options(**more: Any) -> argparse.Namespace:
    given = {"peers": None, "threads": 1, "rounds": 1, "budget": 60.0, "limit": 4.0, "actions": ["step"]}
    return argparse.Namespace(**given | more)


def row(model: str = "ours", *, mib: float = 100.0, seconds: float = 2.0, once: bool = False, **more: Any) -> dict:
    step = {"cpu_s": seconds, "growth_mib": mib, "rounds": 1, "first_call_counted": once}
    return {**HEAD, "model": model, "step": step, "cannot": {}, **more}


def test_a_pair_is_measured_in_processes_and_reasons_are_rows() -> None:
    pair = Pair("published", "A", (MLP,), cannot=(("other", "reads no such thing"),))
    mine, other = measure(pair, {**HEAD, "networks": 3}, [], options())
    assert mine["model"] == "mlp"
    assert mine["networks"] == 3
    assert mine["step"]["rounds"] == 1
    assert not mine["step"]["first_call_counted"]
    assert mine["parameters"] > 512 * 512  # its middle layer
    assert "forward" not in mine
    assert set(mine["step_parts_s"]) == set(KINDS)
    assert mine["step_parts_s"]["products"] > 0
    assert other["cannot"] == {"step": "reads no such thing"}


def test_a_compiled_model_is_compiled_for_its_batch_before_it_is_timed() -> None:
    compiled = Row("mlp, compiled", "ours", MLP.options, compiled=True)
    (found,) = measure(Pair("published", "A", (compiled,)), {**HEAD, "networks": 3}, [], options())
    assert found["step"]["cpu_s"] < 1.0  # compiling takes seconds
    assert "step_parts_s" not in found


def test_operations_have_kinds_and_a_step_is_told_apart() -> None:
    names = "addmm mm native_batch_norm_backward sum copy_ threshold_backward add_ mul as_strided max_pool2d".split()
    assert [kind_of(f"aten::{name}") for name in names] == [
        "products", "products", "norms", "reductions", "copies", "pointwise", "pointwise", "pointwise", "rest",
        "pointwise",
    ]  # fmt: skip
    assert kind_of("MmBackward0") == "rest"
    x = torch.ones(64, 64)

    def step() -> None:
        (x @ x).sum()

    found = seconds_by_kind(step)
    assert {kind for kind, seconds in found.items() if seconds} >= {"products", "reductions"}
    assert not found["norms"]


def test_a_call_that_outgrows_the_limit_is_a_row_that_says_so() -> None:
    wide = Row("wide", "ours", {"name": "dws", "config": {"width": 64}})
    (found,) = measure(Pair("published", "A", (wide,)), {**HEAD, "networks": 64}, [], options(limit=1 / 64))
    assert found["cannot"] == {"step": "needs more than 0 GiB"}
    assert "step" not in found


def test_a_worker_that_stops_is_quoted() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)'gone' stopped:.*no_such_code"):
        Process("gone", "benchmarks.no_such_code", {"threads": 1})


def test_larger_batches_are_left_out_by_what_smaller_ones_took() -> None:
    known = [row("big", mib=3 * 1024.0), row("small", mib=100.0), row("big", mib=1.0, allocator="kept")]
    large = {**HEAD, "networks": 512}
    assert too_large(large, "big", known, 16.0) == {"step": "needs about 24 GiB, 8 times that of 64"}  # 3 x 512 / 64
    assert too_large(large, "big", known, 25.0) == {}
    assert too_large(large, "small", known, 16.0) == {}
    assert too_large(HEAD, "big", known, 1.0) == {}  # the batch itself has no say
    assert too_large({**large, "allocator": "kept"}, "big", known, 16.0) == {}
    left_out = Row("big", "no_such_code", {})
    (found,) = measure(Pair("published", "A", (left_out,)), large, known, options(limit=16.0))  # not even started
    assert found["cannot"]["step"].startswith("needs about 24 GiB")


def test_resuming_leaves_out_what_the_file_has(tmp_path: Path) -> None:
    pair = Pair("published", "A", (Row("ours", "ours", {}),), (Row("theirs", "nfn", {}),), (("old", "no"),))
    args = options(out=tmp_path / "results" / "rows.json", peers="somewhere")
    store([row("ours"), row("theirs")], args.out)
    assert not is_there(pair, HEAD, args)
    store([{**HEAD, "model": "old", "cannot": {"step": "no"}}], args.out)
    assert is_there(pair, HEAD, args)
    assert not is_there(pair, {**HEAD, "allocator": "kept"}, args)
    assert not is_there(pair, {**HEAD, "networks": 512}, args)
    assert not is_there(pair, HEAD, options(out=args.out, peers="somewhere", actions=["forward", "step"]))
    store([row("ours", seconds=9.0), row("ours", allocator="kept")], args.out)
    found = {(r["model"], r["allocator"]): r for r in rows_in(args.out)}
    assert len(rows_in(args.out)) == len(found) == 4
    assert found["ours", "default"]["step"]["cpu_s"] == 9.0


def test_the_table_has_shares_of_the_first_row_of_a_group() -> None:
    rows = [
        row("ours", seconds=0.5, mib=40.0),
        row("ours", seconds=0.25, mib=50.0, allocator="kept"),
        row("theirs", seconds=2.0, mib=100.0),
        row("theirs", seconds=1.5, mib=1200.0, allocator="kept", once=True),
        {**HEAD, "model": "unable", "cannot": {"step": "has no place"}},
        row("equal", size="equal"),
    ]
    assert by_allocator(rows).splitlines()[2:] == [
        "| 64 INRs 2-32-32-1 | ours | 500 | 250 | 40 | 50 |",
        "|  | theirs | 2,000 (4.0 x) | 1,500* (6.0 x) | 100 (2.5 x) | 1,200 (24.0 x) |",
        "|  | unable | has no place | | | |",
    ]


def test_pairs_stand_side_by_side_and_what_has_no_public_code_alone() -> None:
    def timed(model: str, of: str, seconds: float, mib: float, **options: str) -> dict:
        step, forward = ({"wall_s": seconds * k, "growth_mib": mib} for k in (3, 1))
        return {**row(model, of=of), "parameters": 5000, "options": options, "step": step, "forward": forward}

    rows = [
        timed("ours", "ours", 0.1, 20, name="ours"),
        timed("ours, wide", "ours", 0.2, 40, name="ours"),
        timed("theirs", "ours", 0.5, 100),
        timed("theirs, wide", "ours", 0.8, 100),
        timed("alone", "alone", 0.1, 10, name="alone"),
        row("not forward", of="alone"),
    ]
    assert in_pairs(rows, threads=1).splitlines()[2:] == [
        "| A | published | alone | 5,000 | 100 / 300 | 10 | | | | | | |",
        "| A | published | ours | 5,000 | 100 / 300 | 20 | theirs | 5,000 | 500 / 1,500 | 100 | 5.0 / 5.0 | 0.20 |",
        "| A | published | ours, wide | 5,000 | 200 / 600 | 40 | theirs, wide | 5,000 | 800 / 2,400 | 100 | 4.0 / 4.0 "
        "| 0.40 |",
    ]
    assert in_pairs(rows, threads=2).count("\n") == 1


def test_one_of_ours_alone_stands_beside_all_public_code_and_limits_are_by_its_products() -> None:
    def timed(model: str, seconds: float, **more: Any) -> dict:
        step = {"wall_s": seconds, "growth_mib": 10.0}
        return {**row(model), "parameters": 7, "options": {}, "step": step, "forward": step, **more}

    parts = dict.fromkeys(KINDS, 0.0) | {"products": 0.03, "norms": 0.02, "rest": 0.05}
    rows = [timed("ours", 0.2, options={"name": "ours"}, step_parts_s=parts), timed("theirs", 0.5), timed("other", 0.4)]
    pairs_of = [line.split(" | ")[6:11:4] for line in in_pairs(rows, threads=1).splitlines()[2:]]
    assert pairs_of == [["theirs", "2.5 / 2.5"], ["other", "2.0 / 2.0"]]
    assert limits(rows, threads=1).splitlines()[2:] == [
        "| A | published | ours | 200 | 30% | 20% | 0% | 0% | 0% | 50% | 2.5 | 16.7 |",
        "| A | published | ours | 200 | 30% | 20% | 0% | 0% | 0% | 50% | 2.0 | 13.3 |",
    ]


def test_every_public_code_is_measured_or_has_a_reason_in_every_case() -> None:
    public = {"DWSNets", "nfn", "universal_neural_functional", "neural-graphs NG-GNN", "neural-graphs NG-T", "scalegmn"}
    public.add("PyG MetaLayer, 4 x 64")
    for case in CASES:
        here = [pair.main for pair in pairs() if pair.case == case and pair.size == "published"]
        measured = {r.name for pair in here for r in pair.peers}
        reasons = {name for pair in here for name, _ in pair.cannot}
        code = {name: name.split(" ")[0] for name in measured if name.startswith("nfn ")}
        code |= {name: name.split(",")[0] for name in measured if name.startswith("DWSNets")}
        found = {code.get(name, name) for name in measured} | reasons
        assert found == public, case
        assert not measured & reasons
        assert all(pair.ours for pair in here if pair.peers and pair.peers[0].main)


def test_rows_are_told_apart_and_have_a_file_that_builds_them() -> None:
    for pair in pairs():
        names = [r.name for r in (*pair.ours, *pair.peers)] + [name for name, _ in pair.cannot]
        assert len(set(names)) == len(names)
    groups = [(p.case, p.size, p.ours[0].name) for p in pairs()]
    assert len(set(groups)) == len(groups)
    makers = {r.maker for pair in pairs() for r in (*pair.ours, *pair.peers)}
    assert all(importlib.util.find_spec(f"benchmarks.peers.{maker}") for maker in makers)


def test_only_inrs_come_in_batches_of_several_sizes() -> None:
    assert batches_of("A", [512, 64]) == [64, 512]
    assert [batches_of(case, [512, 64]) for case in ("B", "mixed", "resnet50")] == [[64], [64], [1]]


def test_a_mixed_batch_of_the_textbook_network_is_that_of_its_architectures() -> None:
    torch.manual_seed(0)
    parts = [(case, {k: v.double() for k, v in weights.items()}) for case, weights in parts_of(MIXED, 24)[3:6]]
    assert [len(weights["0.weight"]) for _, weights in parts] == [3, 3, 3]
    layouts = [case.traced().layout() for case, _ in parts]
    together = TextbookGraphNetwork(layouts, 1, width=5, rounds=2).double()
    alone = []
    for i, (layout, (_, weights)) in enumerate(zip(layouts, parts, strict=True)):
        one = TextbookGraphNetwork([layout], 1, width=5, rounds=2).double()
        state = {k: v for k, v in together.state_dict().items() if not k.startswith("nodes.")}
        one.load_state_dict({**state, "nodes.0": together.nodes[i]})
        alone += [one([{k: v[j : j + 1] for k, v in weights.items()}]) for j in range(3)]
    answers = together([weights for _, weights in parts])
    torch.testing.assert_close(answers, torch.cat(alone))
    assert answers.std() > 1e-3  # the answers say something of the weights


@pytest.mark.parametrize("case", [INR, CNN, MIXED], ids=["inr", "cnn", "mixed"])
def test_graphs_have_every_weight_at_the_ends_it_connects(case: Any) -> None:
    parts = parts_of(case, 16)
    graphs = graph_batch(parts, 0.0, lambda part: {"widths": list(part.widths)}).to_data_list()
    networks = [
        (part, {k: v[i] for k, v in weights.items()})
        for part, weights in parts
        for i in range(len(next(iter(weights.values()))))
    ]
    for graph, (part, weights) in zip(graphs, networks, strict=True):
        assert graph.widths == list(part.widths)
        dense = torch.zeros(sum(part.widths), sum(part.widths), graph.edge_attr.shape[1])
        dense[graph.edge_index[0], graph.edge_index[1]] = graph.edge_attr
        start, middle = [0, *itertools.accumulate(part.widths)], (graph.edge_attr.shape[1] - 1) // 2
        for layer, matrix in enumerate(list(weights.values())[::2]):
            block = dense[start[layer] : start[layer + 1], start[layer + 1] : start[layer + 2]].transpose(0, 1)
            expected = matrix.flatten(2) if matrix.ndim > 2 else matrix.unsqueeze(-1)
            first = 0 if expected.shape[-1] > 1 else middle
            assert torch.equal(block[..., first : first + expected.shape[-1]], expected)
        assert graph.edge_attr.count_nonzero() == sum(m.numel() for m in list(weights.values())[::2])
        assert torch.equal(graph.x[part.widths[0] :, 0], torch.cat(list(weights.values())[1::2]))
