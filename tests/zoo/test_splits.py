"""Splits: determined by the key alone, disjoint, of the expected size."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import SpecError
from weightspace.zoo import DEFAULT_FRACTIONS, split_of


@given(st.text(), st.text())
def test_every_key_has_one_of_the_splits(key, salt):
    assert split_of(key, salt) in DEFAULT_FRACTIONS
    assert split_of(key, salt) == split_of(key, salt)


def test_shares_are_as_asked_within_four_standard_deviations():
    names = np.array([split_of(f"digits/{i}") for i in range(20_000)])
    for name, share in DEFAULT_FRACTIONS.items():
        assert abs((names == name).mean() - share) < 4 * math.sqrt(share * (1 - share) / len(names))


def test_the_split_of_a_key_never_changes():
    assert [split_of(f"digits/{i}", "") for i in range(8)] == [
        "train", "train", "test", "test", "test", "train", "test", "val",
    ]  # fmt: skip


def test_salts_divide_independently():
    a = np.array([split_of(str(i), "a") == "train" for i in range(5_000)])
    b = np.array([split_of(str(i), "b") == "train" for i in range(5_000)])
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_raising_the_first_share_only_moves_keys_into_it():
    small, large = {"train": 0.5, "test": 0.5}, {"train": 0.7, "test": 0.3}
    for i in range(500):
        if split_of(str(i), "", small) == "train":
            assert split_of(str(i), "", large) == "train"


def test_a_share_of_nothing_gets_nothing():
    assert {split_of(str(i), "", {"train": 1.0, "test": 0.0}) for i in range(500)} == {"train"}


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(SpecError, match="'fractions' must be shares of at least 0 that sum to 1"):
        split_of("x", "", fractions)
