"""``kill -9`` of a zoo build at random moments, then resume: the files of an uninterrupted build, bit for bit?

    python benchmarks/kill_and_resume.py --kills 10

One folder is built in ``kills + 1`` starts: each of the first is killed (the parent process only, as the out-of-memory
killer would; its workers must leave by themselves) at a random moment: while it starts up, or after a random number of
new units and a random delay, so that every kill finds work to destroy; the last start finishes. Exits with 1 if
anything differs.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from weightspace.zoo import Zoo
from weightspace.zoo.build import build
from weightspace.zoo.recipes import DigitsInr

RESULT = Path(__file__).parent / "results" / "kill_and_resume.json"


def start(path: Path, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A build in a process group of its own."""
    command = [sys.executable, __file__, "--build", str(path), "--limit", str(args.limit), "--workers"]
    return subprocess.Popen([*command, str(args.workers)], start_new_session=True)


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def published(path: Path) -> int:
    """Units whose index is there."""
    return len(list(path.glob("index/*.parquet")))


def wait_for_a_moment(path: Path, moments: random.Random, most_units: int) -> None:
    """Return while the build starts up, or soon after it has published up to ``most_units`` more units."""
    more = moments.randint(0, most_units)
    enough, deadline = published(path) + more, time.perf_counter() + 120
    while published(path) < enough and time.perf_counter() < deadline:
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.1) if more else moments.uniform(0, 5))


def seconds_until_gone(group: int) -> float:
    """How long the workers outlive their parent."""
    began = time.perf_counter()
    while time.perf_counter() - began < 30:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--limit", type=int, default=0, help="images; 0 for all 1,797")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        build(DigitsInr(limit=args.limit, unit_size=64), args.build, workers=args.workers, progress=False)
        return 0

    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        began = time.perf_counter()
        start(whole, args).wait()
        whole_seconds = time.perf_counter() - began
        units = len(Zoo.open(whole).units)
        print(f"uninterrupted: {len(Zoo.open(whole)):,} INRs in {units} units, {whole_seconds:.1f} s")
        print(f"{'kill':>4}{'after s':>9}{'units before':>14}{'after':>7}{'left-over files':>17}{'workers gone s':>16}")
        moments, kills = random.Random(args.seed), []
        for kill in range(1, args.kills + 1):
            before, began = published(killed), time.perf_counter()
            process = start(killed, args)
            wait_for_a_moment(killed, moments, units // args.kills - 1)
            moment = time.perf_counter() - began
            finished = process.poll() is not None
            process.send_signal(signal.SIGKILL)
            process.wait()
            gone = seconds_until_gone(process.pid)
            after, left = published(killed), len(list(killed.rglob("*.tmp")))
            note = "  (had finished)" if finished else ""
            print(f"{kill:4}{moment:9.2f}{before:14}{after:7}{left:17}{gone:16.2f}{note}", flush=True)
            kills.append({"after_s": round(moment, 2), "units_before": before, "units_after": after, "left_over": left})
        if start(killed, args).wait():
            return 1
        a, b = hashes(whole), hashes(killed)
        different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        rows = Zoo.open(killed)
        print(f"resumed: {len(rows):,} rows, {len(set(rows.column('model_id'))):,} different models, {len(b)} files")
        print(f"different from the uninterrupted build: {different or 'nothing, bit for bit'}")
        print(rows.verify(deep=True))
        record = {"rows": len(rows), "units": units, "kills": kills, "files": len(b), "different_files": different}
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
