"""Engines that run the work units of a zoo."""

from weightspace.zoo.engines.base import AbstractExecutor, Outcome, Work
from weightspace.zoo.engines.local import LocalExecutor
from weightspace.zoo.engines.serial import SerialExecutor

__all__ = ["AbstractExecutor", "LocalExecutor", "Outcome", "SerialExecutor", "Work"]
