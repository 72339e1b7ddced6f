"""One executor on one case in a process of its own; runs once per line of standard input and says what it took.

python -m benchmarks.engine.worker '{"case": "inr64", "executor": "blocks", "threads": 1, "resnet": null}'
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.engine.executors import Subject
from benchmarks.peers.worker import timed


def _cpu_seconds() -> float:
    """Of this process and of the compilers it ran."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    subject = Subject(order["case"], order["executor"], order["resnet"] and Path(order["resnet"]))
    # what is compiled is compiled for its shapes: no smaller case can warm up for it
    warm = subject if subject.is_compiled else Subject("tiny", order["executor"])
    began = _cpu_seconds()
    warm.forward()
    warm.step()
    compile_seconds = _cpu_seconds() - began if subject.is_compiled else None
    ctypes.CDLL(None).malloc_trim(0)  # free memory of the set-up would hide what the first call takes
    size = {"edges": subject.num_edges, "nodes": len(subject.x), "compile_s": compile_seconds}
    replies.write(json.dumps(size) + "\n")
    for line in sys.stdin:
        action = json.loads(line)
        if "states" in action:
            found = subject.results(states=action["states"])
            save_file({name: x.contiguous() for name, x in found.items()}, action["path"])
            replies.write("{}\n")
        else:
            replies.write(json.dumps(timed(getattr(subject, action["call"]))) + "\n")


if __name__ == "__main__":
    main()
