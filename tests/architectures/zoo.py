"""All hand-made architectures by name."""

from __future__ import annotations

from tests.architectures.attention import ATTENTION
from tests.architectures.convolutional import CONVOLUTIONAL
from tests.architectures.dense import DENSE
from tests.architectures.recurrent import RECURRENT
from tests.architectures.residual import RESIDUAL

__all__ = ["ARCHITECTURES"]

ARCHITECTURES = {**DENSE, **CONVOLUTIONAL, **RESIDUAL, **ATTENTION, **RECURRENT}
