"""Builds: exactly once, resumable after anything, the same bits however the work was shared."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from weightspace.errors import SpecError, WeightspaceError
from weightspace.zoo import Zoo
from weightspace.zoo.build import build
from weightspace.zoo.engines import SerialExecutor
from weightspace.zoo.recipe import AbstractRecipe
from weightspace.zoo.recipes import DigitsInr

SMALL = {"limit": 6, "widths": (2, 8, 8, 1), "steps": 4, "unit_size": 5, "chunk": 4, "compiled": False}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _script(path: Path, text: str) -> list[str]:
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


def test_a_build_has_every_member_once_and_is_sound(tmp_path):
    zoo = build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1, progress=False, title="Six digits", licence="BSD")
    assert len(zoo) == 24
    assert set(Counter(zoo.column("model_id")).values()) == {1}
    assert zoo.manifest.title == "Six digits"
    assert zoo.manifest.recipe["steps"] == 4
    assert zoo.manifest.forward["coordinate_order"] == ["x", "y"]
    assert Zoo.open(tmp_path / "zoo").verify(deep=True).ok


def test_building_again_changes_nothing(tmp_path, monkeypatch):
    build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1, progress=False)
    before = _files(tmp_path / "zoo")
    monkeypatch.setattr(DigitsInr, "prepare", lambda self: pytest.fail("nothing is left to prepare for"))
    build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1, progress=False)
    assert _files(tmp_path / "zoo") == before


def test_missing_units_and_stale_temporaries_are_put_right(tmp_path):
    path = tmp_path / "zoo"
    build(DigitsInr(**SMALL), path, workers=1, progress=False)
    before = _files(path)
    units = [unit.name for unit in DigitsInr(**SMALL).plan()]
    (path / "index" / f"{units[1]}.parquet").unlink()
    (path / "index" / f"{units[3]}.parquet").unlink()
    (path / "shards" / f"{units[3]}.safetensors").unlink()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = os.uname().nodename.replace(".", "-")
    (path / "shards" / f".{units[3]}.safetensors.{host}.{int(dead.stdout)}.00000000.tmp").write_bytes(b"torn")
    build(DigitsInr(**SMALL), path, workers=1, progress=False)
    assert _files(path) == before


def test_worker_processes_give_the_same_bits(tmp_path):
    build(DigitsInr(**SMALL), tmp_path / "one", workers=1, progress=False)
    build(DigitsInr(**SMALL), tmp_path / "two", workers=2, progress=False)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_the_bar_counts_members(tmp_path, capsys):
    build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1)
    assert "24/24" in capsys.readouterr().err


def test_killed_builds_resume_to_the_same_bits(tmp_path):
    options = {**SMALL, "limit": 30, "steps": 120}
    command = _script(
        tmp_path / "run.py",
        f"""
        import sys
        from weightspace.zoo.build import build
        from weightspace.zoo.recipes import DigitsInr

        if __name__ == "__main__":
            build(DigitsInr(**{options!r}), sys.argv[1], workers=2, progress=False)
        """,
    )
    expected = len(DigitsInr(**options).plan())
    published: list[int] = []
    for _ in range(2):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], start_new_session=True)
        before, deadline = _units(tmp_path / "killed"), time.monotonic() + 60
        while _units(tmp_path / "killed") < before + 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        published.append(_units(tmp_path / "killed"))
    assert 3 <= published[0] < published[1] < expected
    _wait_for_group(process.pid)
    build(DigitsInr(**options), tmp_path / "killed", workers=1, progress=False)
    build(DigitsInr(**options), tmp_path / "whole", workers=1, progress=False)
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


def _units(path: Path) -> int:
    return len(list((path / "index").glob("*.parquet")))


def _wait_for_group(group: int) -> None:
    """The workers of a killed parent leave by themselves."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("workers outlived their parent")


def test_interrupting_leaves_a_zoo_to_resume(tmp_path):
    command = _script(
        tmp_path / "run.py",
        f"""
        import signal
        import sys
        from weightspace.zoo.build import build
        from weightspace.zoo.recipes import DigitsInr

        if __name__ == "__main__":
            # A shell in the background hands down a deaf ear.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                build(DigitsInr(**{ {**SMALL, "limit": 60, "steps": 200}!r}), sys.argv[1], workers=2, progress=False)
            except KeyboardInterrupt:
                sys.exit(130)
        """,
    )
    process = subprocess.Popen(
        [*command, str(tmp_path / "zoo")], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while _units(tmp_path / "zoo") < 1 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and to all workers
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == ""
    assert Zoo.open(tmp_path / "zoo").verify(deep=True).ok
    assert not list((tmp_path / "zoo").rglob("*.tmp"))


def test_workers_that_die_are_replaced_and_hopeless_tasks_reported(tmp_path):
    command = _script(
        tmp_path / "run.py",
        """
        import json, os, signal, sys
        from functools import partial
        from pathlib import Path
        from weightspace.zoo.engines import LocalExecutor

        def work(folder, task):
            with open(Path(folder) / str(task), "a") as file:
                file.write("x")
            if task == 1 and len((Path(folder) / "1").read_text()) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if task == 2:
                os._exit(3)
            if task == 3:
                raise ZeroDivisionError("no such number")
            return task * 10

        def make_work(folder):
            return partial(work, folder)

        if __name__ == "__main__":
            with LocalExecutor(partial(make_work, sys.argv[1]), 2, retries=1) as executor:
                for task in range(6):
                    executor.submit(task)
                found = {o.task: o.value if o.error is None else repr(o.error) for o in executor.as_completed()}
            print(json.dumps(found, sort_keys=True))
        """,
    )
    (tmp_path / "log").mkdir()
    done = subprocess.run([*command, str(tmp_path / "log")], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert {k: found[k] for k in "0145"} == {"0": 0, "1": 10, "4": 40, "5": 50}
    assert "died 2 times (last exit code 3)" in found["2"]
    assert "use fewer workers" in found["2"]
    assert "no such number" in found["3"]
    attempts = {p.name: len(p.read_text()) for p in (tmp_path / "log").iterdir()}
    assert attempts == {"0": 1, "1": 2, "2": 2, "3": 1, "4": 1, "5": 1}


def test_errors_of_a_unit_name_it_and_keep_the_rest(tmp_path, monkeypatch):
    train = DigitsInr.train

    def fail_late(self, unit):
        if unit.start >= 10:
            raise MemoryError("out of memory")
        return train(self, unit)

    monkeypatch.setattr(DigitsInr, "train", fail_late)
    with pytest.raises(WeightspaceError, match="Unit '.*-10-15' failed \\(MemoryError: out of memory\\).*to go on"):
        build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1, progress=False)
    assert len(Zoo.open(tmp_path / "zoo")) == 10


def test_our_own_errors_pass_unchanged(tmp_path, monkeypatch):
    def refuse(self, unit):
        raise SpecError("It says what to do.")

    monkeypatch.setattr(DigitsInr, "train", refuse)
    with pytest.raises(SpecError, match="^It says what to do.$"):
        build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1, progress=False)


def test_other_options_in_the_same_folder_are_refused(tmp_path):
    build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1, progress=False)
    with pytest.raises(SpecError, match="another recipe.*recipe.seed 0 there, 1 here"):
        build(DigitsInr(**SMALL, seed=1), tmp_path / "zoo", workers=1, progress=False)
    with pytest.raises(SpecError, match="already holds 5 units. Pass resume=True"):
        build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1, resume=False, progress=False)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(SpecError, match="'workers' must be at least 1"):
        build(DigitsInr(**SMALL), tmp_path / "zoo", workers=0)
    assert not (tmp_path / "zoo").exists()


def test_diverged_members_are_counted_in_the_log(tmp_path, monkeypatch, caplog):
    train = DigitsInr.train

    def flagged(self, unit):
        trained = train(self, unit)
        trained.rows[0]["status"] = "diverged"
        return trained

    monkeypatch.setattr(DigitsInr, "train", flagged)
    zoo = build(DigitsInr(**SMALL), tmp_path / "zoo", workers=1, progress=False)
    assert "5 INRs diverged" in caplog.text
    assert Counter(zoo.column("status")) == {"ok": 19, "diverged": 5}


def test_serial_executor_reports_errors_and_forgets_cancelled_tasks():
    executor = SerialExecutor(lambda: lambda task: 1 / task)
    for task in (1, 0, 2):
        executor.submit(task)
    outcomes = list(executor.as_completed())
    assert [o.value for o in outcomes] == [1.0, None, 0.5]
    assert isinstance(outcomes[1].error, ZeroDivisionError)
    executor.submit(1)
    with executor:
        pass
    assert list(executor.as_completed()) == []


def test_a_recipe_must_say_everything():
    with pytest.raises(TypeError, match="abstract"):
        AbstractRecipe()  # pyright: ignore[reportAbstractUsage]
