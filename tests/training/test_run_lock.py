"""One process at a time trains in a folder."""

import subprocess
import sys

import pytest
from filelock import FileLock

from weightspace.errors import CheckpointError
from weightspace.training import TrainConfig
from weightspace.training.run_lock import only_writer

HOLD = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_turned_away_until_the_first_is_gone_even_killed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=r"Another process is training in '.*run'. Wait .* another folder"):
            with only_writer(folder):
                pytest.fail("let in")
        other.kill()
    with only_writer(folder):
        assert list(folder.iterdir()) == [folder / ".lock"]


def test_training_holds_its_folder_and_lets_go(train_model, tmp_path):
    config = TrainConfig(epochs=1, batch_size=16)
    train_model(tmp_path, config)
    with only_writer(tmp_path), pytest.raises(CheckpointError, match="Another process"):
        train_model(tmp_path, config)
    train_model(tmp_path, config)


def test_where_the_file_system_has_no_locks_training_goes_on(tmp_path, monkeypatch):
    def acquire(self, *args, **kwargs):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "__enter__", acquire)
    with only_writer(tmp_path):
        pass
