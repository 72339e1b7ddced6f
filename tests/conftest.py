"""What every test gets: one torch thread, hypothesis without a clock, and a guard on the global random state."""

import os

# Read when torch loads, and inherited by the processes a test starts: workers of one suite must not share cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
# Read when Triton loads, which `torch.export` does; without a device its kernels run under the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No deadline, because the machines of CI are shared; derandomised, because a red suite must be red again tomorrow.
hypothesis.settings.register_profile("weightspace", deadline=None, derandomize=True)
hypothesis.settings.load_profile("weightspace")


@pytest.fixture(autouse=True)
def _same_random_state_for_every_test():
    """Give each test the same global state, so that its result does not depend on which tests ran before it.

    Tests pass their own generators to the package; this is for what modules draw at construction.
    """
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of its own for the test."""
    return torch.Generator().manual_seed(0)
