"""Whether a transform of ``torch.func`` is at work: those see plain operations only."""

from __future__ import annotations

# torch has no public question for this
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack

__all__ = ["is_func_grad", "is_transformed"]


def is_transformed() -> bool:
    """Whether any transform runs, ``vmap`` included; what ``torch.compile`` traces counts as transformed too."""
    return peek_interpreter_stack() is not None


def is_func_grad() -> bool:
    """Whether a transform other than ``vmap`` runs, which operators of torch do not let through."""
    return any(level.key() != TransformType.Vmap for level in get_interpreter_stack() or ())
