"""What goes wrong on disk: each kind of damage is named with the way out, and an interrupted write loses nothing."""

import errno
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from weightspace.errors import WeightspaceError, ZooFormatError, ZooWriteError
from weightspace.zoo import Architecture, Zoo, files
from weightspace.zoo.index import encode_index, read_index


def edit(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(offset: int):
    return lambda data: data[:offset] + bytes([data[offset] ^ 1]) + data[offset:][1:]


SHARD, INDEX = "shards/b.safetensors", "index/b.parquet"

# file, what happens to it, what reading the weights says, what verify says without reading every byte (None: nothing)
DAMAGE = [
    (SHARD, lambda data: data[:-7], "has 4.. bytes, the index says 4..: it was truncated", "it was truncated"),
    (SHARD, flip(-5), "was altered: checksums of 1 rows do not match. Restore the file from a copy, or", None),
    (SHARD, flip(9), "is not readable", "is not readable"),
    (SHARD, None, "is missing, but the index counts on it", "is missing"),
    (INDEX, lambda data: data[:-7], "'.*b.parquet' is not a readable index", "is not a readable index"),
    (INDEX, flip(40), "is not a readable index .*CRC checksum", "is not a readable index"),
    (INDEX, lambda data: b"", "is not a readable index", "is not a readable index"),
    ("archs/{arch}.json", None, "is missing, but the index counts on it. Restore it", "is missing"),
    ("archs/{arch}.json", lambda data: data[:50], "is damaged", "is damaged"),
    ("archs/{arch}.json", lambda data: data.replace(b'"toy"', b'"tow"'), "was altered: its contents", "was altered"),
    ("zoo.json", lambda data: data[:40], r"'.*zoo.json' is damaged \(JSONDecodeError", None),
    ("zoo.json", lambda data: b"[1]", r"'.*zoo.json' is damaged \(TypeError", None),
    ("zoo.json", lambda data: data.replace(b'"format_version": 1', b'"format_version": 2'),
     "has format version 2, this weightspace reads up to 1. Upgrade weightspace", None),
    ("zoo.json", None, "is not a zoo .it has no zoo.json.. Give the folder that holds zoo.json", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "reading", "shallow"), DAMAGE)
def test_damage_is_named(tmp_path, toy, name, change, reading, shallow):
    toy.create(tmp_path)
    path = tmp_path / name.format(arch=toy.architecture.hash)
    path.unlink() if change is None else edit(path, change)
    with pytest.raises(ZooFormatError, match=reading):
        Zoo.open(tmp_path).weights()
    if name == "zoo.json":
        return
    zoo = Zoo.open(tmp_path)
    problems = zoo.verify().problems
    assert bool(problems) == (shallow is not None)
    if shallow is not None:
        assert shallow in problems[0]
    deep = zoo.verify(deep=True)
    assert not deep.ok
    assert str(deep).startswith(f"Zoo '{tmp_path}': {len(deep.problems)} problems in ")
    if name == SHARD:  # rows of the other unit are untouched
        assert torch.equal(zoo.select(shard="a").weights()["0.bias"], toy.weights(0, 6)["0.bias"])


def test_no_flipped_byte_of_an_index_goes_unseen(tmp_path, toy):
    """Pages have checksums that every read compares; what lies outside of them is found by the digest of the rows."""
    toy.create(tmp_path)
    whole, unseen = (tmp_path / INDEX).read_bytes(), []
    expected = read_index(tmp_path / INDEX)
    for offset in range(0, len(whole), 41):
        (tmp_path / INDEX).write_bytes(flip(offset)(whole))
        report = Zoo.open(tmp_path).verify(deep=True)
        if report.ok:
            unseen.append(offset)
            assert read_index(tmp_path / INDEX) == expected
    assert len(unseen) < len(whole) / 41  # padding and statistics, which nothing reads


def test_checks_can_be_left_out(tmp_path, toy):
    toy.create(tmp_path)
    edit(tmp_path / SHARD, flip(-5))
    assert len(Zoo.open(tmp_path, check=False).weights()["0.bias"]) == 11
    with pytest.raises(ZooFormatError, match="altered"):
        Zoo.open(tmp_path)[10]
    assert Zoo.open(tmp_path)[9].row["model_id"] == "b-3"


def test_damage_in_a_header_that_still_parses_is_found_by_deep_verify(tmp_path, toy):
    toy.create(tmp_path)
    edit(tmp_path / SHARD, lambda data: data.replace(b'"unit": "b"', b'"unit": "x"'))
    zoo = Zoo.open(tmp_path)
    assert zoo.verify().ok
    assert "was altered: its SHA-256 is" in zoo.verify(deep=True).problems[0]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ZooFormatError, match="is not a zoo"):
        Zoo.open(tmp_path / "file")
    with pytest.raises(ZooWriteError, match="'.*zoo.json' could not be written"):
        Zoo.create(tmp_path / "file" / "zoo", recipe={}, forward={})


def test_index_files_of_elsewhere(tmp_path, toy):
    zoo = toy.create(tmp_path / "zoo")
    other = Zoo.create(tmp_path / "other", recipe={"name": "other"}, forward={})
    other.append("z", toy.architecture, toy.weights(8, 2), toy.rows("z", 2))
    for name in ("shards/z.safetensors", "index/z.parquet"):
        (tmp_path / "zoo" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert [text.split(":")[0] for text in zoo.verify().problems] == [
        f"'index/z.parquet' was written as unit 'z' of zoo {other.manifest.zoo_id}, not of this one "
        f"({zoo.manifest.zoo_id})"
    ]


def test_an_index_under_another_name(tmp_path, toy):
    zoo = toy.create(tmp_path)
    (tmp_path / "index" / "c.parquet").write_bytes((tmp_path / INDEX).read_bytes())
    text = str(zoo.verify())
    assert "'index/c.parquet' was written as unit 'b'" in text
    assert "The index of unit 'c' points into shards ['b']" in text
    assert "5 values of model_id occur more than once ('b-0' for one)" in text


def test_rows_that_overlap_or_reach_too_far(tmp_path, toy):
    zoo = toy.create(tmp_path)
    table = zoo.select(shard="b").rows
    record = read_index(tmp_path / INDEX)[1].shard
    for offsets, shallow in [([0, 16, 32, 32, 64], "overlap"), ([0, 16, 32, 48, 80], "reach beyond the 80 float32")]:
        position = table.column_names.index("offset")
        changed = table.set_column(position, "offset", [offsets])
        (tmp_path / INDEX).write_bytes(encode_index(changed, zoo.manifest.zoo_id, "b", record))
        assert shallow in zoo.verify().problems[0]
    lost = table.set_column(table.column_names.index("shard"), "shard", [["x"] * 5])
    (tmp_path / INDEX).write_bytes(encode_index(lost, zoo.manifest.zoo_id, "b", record))
    with pytest.raises(ZooFormatError, match="The index points into shard 'x', which has no index"):
        Zoo.open(tmp_path).weights()
    (tmp_path / INDEX).write_bytes(encode_index(table.drop(["arch"]), zoo.manifest.zoo_id, "b", record))
    with pytest.raises(ZooFormatError, match="is not a readable index .*arch"):
        len(Zoo.open(tmp_path))
    (tmp_path / INDEX).write_bytes(encode_index(changed, zoo.manifest.zoo_id, "b", record))
    with pytest.raises(ZooFormatError, match="places a row at float32 scalars 80:96 of shard 'b', which ends before"):
        Zoo.open(tmp_path).weights()


# Interrupted writing


@pytest.mark.parametrize("call", range(6))
def test_a_full_disk_leaves_what_was_published(tmp_path, toy, monkeypatch, call):
    """The system refuses at each of the fsyncs of one append in turn: file and folder of shard and index, and after."""
    zoo, calls, sync = toy.create(tmp_path), iter(range(100)), os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        if call < 4:
            with pytest.raises(ZooWriteError, match=r"could not be written \(No space left on device\). Nothing half-"):
                zoo.append("c", toy.architecture, toy.weights(3, 4), toy.rows("c", 4))
        else:
            zoo.append("c", toy.architecture, toy.weights(3, 4), toy.rows("c", 4))
    assert not list(tmp_path.rglob("*.tmp"))
    assert Zoo.open(tmp_path).verify(deep=True).ok
    assert zoo.units in (["a", "b"], ["a", "b", "c"])
    zoo.append("c", toy.architecture, toy.weights(3, 4), toy.rows("c", 4))
    assert len(Zoo.open(tmp_path)) == 15


def test_a_real_limit_on_file_size(tmp_path, toy):
    zoo = toy.create(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ZooWriteError, match=r"c.safetensors' could not be written \(File too large\)") as caught:
            zoo.append("c", toy.architecture, toy.weights(3, 400), toy.rows("c", 400))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, WeightspaceError)
    assert not list(tmp_path.rglob("*.tmp"))
    assert zoo.verify(deep=True).ok


KILLED = """
import json, os, signal, sys
import torch
from weightspace.zoo import Architecture, Zoo

torch.set_num_threads(1)
architecture = Architecture("toy", {}, {"w": ((3,), "float32")})
fields = {"run_id": "r", "step": 0, "seed": 0, "init_id": "i", "split_key": "k", "label": 0}
rows = [{"model_id": str(i), **fields} for i in range(4)]

def append(folder, point):
    real, seen = {"replace": os.replace, "fsync": os.fsync}, {"replace": 0, "fsync": 0}
    def watched(name):
        def call(*args):
            seen[name] += 1
            if (name, seen[name]) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*args)
        return call
    zoo = Zoo.create(folder, recipe={}, forward={})
    os.replace, os.fsync = watched("replace"), watched("fsync")
    zoo.append("u", architecture, {"w": torch.arange(12.0).view(4, 3)}, rows)
    os._exit(0)

for folder, name, number in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        append(folder, (name, number))
    os.waitpid(child, 0)
"""


def test_kill_at_every_step_of_publishing_and_resume(tmp_path):
    """SIGKILL before each rename and each fsync of an append leaves nothing or all, and resuming completes it."""
    points = [("replace", i) for i in (1, 2, 3)] + [("fsync", i) for i in (1, 2, 3, 4, 5, 6)] + [("never", 0)]
    folders = [tmp_path / f"{name}{i}" for name, i in points]
    work = [(str(folder), name, i) for folder, (name, i) in zip(folders, points, strict=True)]
    subprocess.run([sys.executable, "-c", KILLED, json.dumps(work)], check=True)
    whole = {path.name: path.read_bytes() for path in sorted(folders[-1].rglob("*")) if path.is_file()}
    states = []
    for folder in folders:
        zoo = Zoo.open(folder)
        report = zoo.verify(deep=True)
        assert report.ok, report
        states.append(
            (zoo.units, "shard 'u' has no index" in str(report), "left by a writer that is gone" in str(report))
        )
        zoo.sweep()
    assert states[:3] == [([], False, True), ([], False, True), ([], True, True)]
    assert states[-2] == (["u"], False, False)  # killed in the last fsync: the rename had been done
    assert states[-1] == (["u"], False, False)
    architecture = Architecture("toy", {}, {"w": ((3,), "float32")})
    fields = {"run_id": "r", "step": 0, "seed": 0, "init_id": "i", "split_key": "k", "label": 0}
    for folder in folders:
        rows = [{"model_id": str(i), **fields} for i in range(4)]
        Zoo.open(folder).append("u", architecture, torch.arange(12.0).view(4, 3), rows)
        assert {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == whole


def test_sweep_spares_the_temporaries_of_live_writers(tmp_path, toy, monkeypatch):
    zoo = toy.create(tmp_path)
    host = files.socket.gethostname().replace(".", "-")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    names = {
        f".a.parquet.{host}.{os.getpid()}.00000000.tmp": False,
        f".b.parquet.{host}.{dead.stdout.strip()}.00000000.tmp": True,
        ".c.parquet.elsewhere.1.00000000.tmp": False,
        ".d.parquet.elsewhere.1.00000000.tmp": True,
        ".f.parquet.elsewhere.1.0000.tmp": False,
        ".old.tmp": False,
    }
    (tmp_path / "index" / "notes").mkdir()
    (tmp_path / "index" / "notes" / f".b.parquet.{host}.{dead.stdout.strip()}.00000000.tmp").write_text(
        "of another tool"
    )
    for name in names:
        (tmp_path / "index" / name).write_text("half")
    two_days_ago = time.time() - 2 * 86400
    for name in (".d.parquet.elsewhere.1.00000000.tmp", ".f.parquet.elsewhere.1.0000.tmp", ".old.tmp"):
        os.utime(tmp_path / "index" / name, (two_days_ago, two_days_ago))
    assert zoo.units == ["a", "b"]
    assert {path.name for path in zoo.sweep()} == {name for name, stale in names.items() if stale}
    assert zoo.sweep() == []
    assert list((tmp_path / "index" / "notes").iterdir())

    def foreign(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", foreign)
    assert zoo.sweep() == []
    monkeypatch.setattr(os, "name", "nt")
    assert zoo.sweep() == []


WRITERS = """
import os, sys
import torch
from weightspace.zoo import Architecture, Zoo

torch.set_num_threads(1)
folder = sys.argv[1]
architecture = Architecture("toy", {}, {"w": ((300,), "float32")})
Zoo.create(folder, recipe={}, forward={})

def write(offset):
    zoo = Zoo.create(folder, recipe={}, forward={})
    for k in range(12):
        unit = (k + offset) % 12
        fields = {"step": 0, "seed": 0, "init_id": "i", "split_key": "k", "label": unit}
        rows = [{"model_id": f"{unit}-{i}", "run_id": f"{unit}-{i}", **fields} for i in range(20)]
        zoo.append(f"u{unit}", architecture, torch.full((20, 300), float(unit)), rows)
    os._exit(0)

children = [os.fork() or write(offset) for offset in (0, 0, 6)]
running = set(children)
while running:
    zoo = Zoo.open(folder)
    if len(zoo):
        assert len(zoo) == 20 * len(set(zoo.column("shard")))
        assert (zoo.weights()["w"] == torch.from_numpy(zoo.column("label"))[:, None]).all()
    done, status = os.waitpid(-1, os.WNOHANG)
    assert status == 0, status
    running.discard(done)
assert len(Zoo.open(folder)) == 240
"""


def test_writers_of_the_same_units_and_readers_do_not_disturb_each_other(tmp_path):
    subprocess.run([sys.executable, "-c", WRITERS, str(tmp_path)], check=True)
    assert Zoo.open(tmp_path).verify(deep=True).ok
    assert not list(tmp_path.rglob("*.tmp"))
