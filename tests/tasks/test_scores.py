"""Vote arithmetic and scores, against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from weightspace.tasks import score_classes, vote


def test_a_vote_sums_log_probabilities_per_key_in_order_of_first_use():
    log_p = torch.tensor([[1.0, 0.0], [0.0, 5.0], [2.0, 0.0], [0.0, 1.0]])
    names, summed = vote(log_p, np.array(["b", "a", "b", "c"]))
    assert names.tolist() == ["b", "a", "c"]
    assert summed.tolist() == [[3.0, 0.0], [0.0, 5.0], [0.0, 1.0]]


def test_scores_by_hand():
    # Item x (class 0): wrong by a little, right by a lot, so the vote is right. Item y (class 1): right. z (2): wrong.
    p = torch.tensor([[0.4, 0.6, 0.0], [0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.5, 0.3, 0.2]]).clamp(min=1e-6)
    scores = score_classes(p.log(), torch.tensor([0, 0, 1, 2]), ["x", "x", "y", "z"])
    assert scores.accuracy == 0.5
    assert scores.vote_accuracy == pytest.approx(2 / 3)
    assert scores.confusion == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert scores.per_class == [0.5, 1.0, 0.0]
    assert (scores.networks, scores.items) == (4, 3)
    assert repr(scores) == "Scores(50.0% of 4 networks, 66.7% of 3 items by vote)"


def test_a_class_without_networks_has_no_accuracy_and_json_says_null():
    scores = score_classes(torch.eye(3).log_softmax(1)[:2], torch.tensor([0, 1]), ["x", "y"])
    assert math.isnan(scores.per_class[2])
    assert json.loads(json.dumps(scores.to_json(), allow_nan=False))["per_class"] == [1.0, 1.0, None]


def test_one_network_an_item_makes_the_vote_the_accuracy():
    g = torch.Generator().manual_seed(0)
    log_p, labels = torch.randn(50, 4, generator=g).log_softmax(1), torch.randint(0, 4, (50,), generator=g)
    scores = score_classes(log_p, labels, [str(i) for i in range(50)])
    assert scores.accuracy == scores.vote_accuracy
    assert sum(map(sum, scores.confusion)) == 50
