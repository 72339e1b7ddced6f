"""The training loop: determinism, resume to the bit, selection on validation, early stop, clear failures."""

import csv
import json
import os
import socket
from itertools import count

import pytest
import torch

from weightspace.errors import CheckpointError, ShapeError, SpecError
from weightspace.training import (
    Classification,
    DivergedError,
    LabelledWeights,
    Pipeline,
    Regression,
    TrainConfig,
    fit,
    predict,
)
from weightspace.training import loop as loop_module
from weightspace.training.checkpoint import write_checkpoint

CONFIG = TrainConfig(epochs=4, batch_size=16, warmup_steps=3, lr=1e-2, augment=("geo", "sign", "noise"))


class Interrupting:
    """Batches that stop the program in one epoch, after two steps."""

    def __init__(self, data: LabelledWeights, epoch: int) -> None:
        self.data, self.epoch, self.passes = data, epoch, 0

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, count):
        return self.data.sample(count)

    def batches(self, size, generator=None):
        self.passes += 1
        for i, batch in enumerate(self.data.batches(size, generator)):
            if self.passes == self.epoch and i == 2:
                raise KeyboardInterrupt
            yield batch


def bits(model) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def figures(result) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in result.epochs]


def test_a_run_is_the_same_every_time_whatever_the_global_seed(train_model, tmp_path):
    first, a = train_model(tmp_path / "a", CONFIG)
    torch.manual_seed(1234)
    second, b = train_model(tmp_path / "b", CONFIG)
    assert bits(first) == bits(second)
    assert figures(a) == figures(b)
    other, _ = train_model(tmp_path / "c", TrainConfig(**{**CONFIG.to_json(), "seed": 1}))
    assert bits(first) != bits(other)


def test_training_leaves_the_global_random_state_and_the_data_alone(train_model, data, tmp_path):
    state, kept = torch.get_rng_state(), {k: v.clone() for k, v in data[0].weights.items()}
    train_model(tmp_path, CONFIG)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(data[0].weights[k], kept[k]) for k in kept)


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_an_interrupted_run_resumes_to_the_bit(train_model, data, tmp_path, epoch):
    whole, a = train_model(tmp_path / "whole", CONFIG)
    with pytest.raises(KeyboardInterrupt):
        train_model(tmp_path / "cut", CONFIG, train=Interrupting(data[0], epoch))
    resumed, b = train_model(tmp_path / "cut", CONFIG)
    assert bits(resumed) == bits(whole)
    assert figures(a) == figures(b)
    assert a.best_epoch == b.best_epoch


def killed_at(monkeypatch, number: int) -> None:
    """Stop the program where it is about to write for the ``number``-th time."""
    write, left = loop_module.write_checkpoint, iter(range(number - 1))

    def write_or_stop(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(loop_module, "write_checkpoint", write_or_stop)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_kill_between_the_two_checkpoints_loses_nothing(train_model, tmp_path, monkeypatch, number):
    whole, a = train_model(tmp_path / "whole", CONFIG)
    with monkeypatch.context() as patch:
        killed_at(patch, number)
        with pytest.raises(KeyboardInterrupt):
            train_model(tmp_path / "cut", CONFIG)
    resumed, b = train_model(tmp_path / "cut", CONFIG)
    assert bits(resumed) == bits(whole)
    assert figures(a) == figures(b)
    assert a.best_epoch == b.best_epoch


@pytest.mark.parametrize("number", [2, 3, 7, 8])
def test_under_a_limit_of_time_a_killed_run_keeps_parameters_of_an_epoch_in_its_history(
    train_model, data, tmp_path, monkeypatch, number
):
    """The epoch that is repeated comes out otherwise, as the machine has become slower."""
    noise = LabelledWeights(data[0].weights, torch.arange(60) // 3 % 2)  # so that scores fall as often as they rise
    config = TrainConfig(epochs=1000, batch_size=16, lr=3e-2, average=0.0, augment=(), max_seconds=0.1)
    ticks, tick = count(1), 0.001
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: tick * next(ticks))
    with monkeypatch.context() as patch:
        killed_at(patch, number)
        with pytest.raises(KeyboardInterrupt):
            train_model(tmp_path, config, train=noise)
    tick = 0.02
    model, result = train_model(tmp_path, config, train=noise)
    scores = [(row["val_accuracy"], -row["val_loss"]) for row in result.epochs]
    assert result.best_epoch == scores.index(max(scores)) + 1
    outputs, labels = predict(model, data[1])
    assert Classification().measure(outputs, labels)["loss"] == result.epochs[result.best_epoch - 1]["val_loss"]


def test_a_folder_whose_checkpoint_is_ahead_of_its_history_goes_on(train_model, tmp_path, monkeypatch):
    """As versions left it that wrote the checkpoint first, when they were killed behind it."""
    whole, a = train_model(tmp_path / "whole", CONFIG)
    with monkeypatch.context() as patch:
        killed_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train_model(tmp_path / "cut", CONFIG)
    assert a.epochs[1]["val_loss"] < a.epochs[0]["val_loss"], "the second epoch would have been kept"
    for path in (tmp_path / "cut").glob("checkpoint*"):
        path.unlink()
    write_checkpoint(tmp_path / "cut", "checkpoint", 2, {"of": torch.zeros(1)}, {})
    resumed, b = train_model(tmp_path / "cut", CONFIG)
    assert bits(resumed) == bits(whole)
    assert (figures(a), a.best_epoch) == (figures(b), b.best_epoch)


def test_a_kill_before_the_metrics_leaves_them_to_the_next_call(train_model, tmp_path):
    _, result = train_model(tmp_path, CONFIG)
    (tmp_path / "metrics.json").write_text("[]")
    train_model(tmp_path, CONFIG)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result.epochs


def test_what_a_killed_run_left_half_written_is_removed(train_model, tmp_path):
    stale = tmp_path / f".metrics.csv.{socket.gethostname().replace('.', '-')}.{2**22 + 1}.0000000a.tmp"
    foreign = [tmp_path / ".scratch.tmp", tmp_path / "notes" / stale.name]
    foreign[1].parent.mkdir()
    for path in (stale, *foreign):
        path.write_text("half a row")
        os.utime(path, (0, 0))
    train_model(tmp_path, CONFIG)
    assert not stale.exists()
    assert all(path.exists() for path in foreign), "files of others stay"


def test_a_finished_run_is_loaded_and_not_repeated(train_model, tmp_path):
    model, result = train_model(tmp_path, CONFIG)
    again, second = train_model(tmp_path, CONFIG, train=None)
    assert bits(model) == bits(again)
    assert second.epochs == json.loads(json.dumps(result.epochs))
    assert second.seconds == result.seconds


def test_the_model_learns_and_the_files_tell_it(train_model, tmp_path):
    config = TrainConfig(epochs=30, batch_size=16, warmup_steps=3, lr=1e-2, augment=("sign",))
    _, result = train_model(tmp_path, config)
    assert result.epochs[result.best_epoch - 1]["val_accuracy"] > 0.75
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [int(r["epoch"]) for r in rows] == list(range(1, 31))
    assert float(rows[-1]["val_loss"]) == pytest.approx(result.epochs[-1]["val_loss"])
    assert json.loads((tmp_path / "metrics.json").read_text()) == result.epochs
    wanted = {"epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert set(result.epochs[0]) == wanted | {"seconds", "cpu_seconds"}
    names = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert names == {"checkpoint", "checkpoint.json", "resume", "resume.json", "metrics.json", "metrics.csv", ".lock"}


def test_the_kept_parameters_are_the_best_on_validation(train_model, data, tmp_path):
    config = TrainConfig(epochs=12, batch_size=16, warmup_steps=3, lr=5e-2, augment=())
    model, result = train_model(tmp_path, config)
    scores = [(row["val_accuracy"], -row["val_loss"]) for row in result.epochs]
    assert result.best_epoch == scores.index(max(scores)) + 1
    outputs, labels = predict(model, data[1])
    best = result.epochs[result.best_epoch - 1]
    assert float((outputs.argmax(1) == labels).double().mean()) == pytest.approx(best["val_accuracy"])
    assert len({row["val_loss"] for row in result.epochs}) > 1


def test_patience_stops_a_run_that_no_longer_improves(train_model, data, tmp_path):
    noise = LabelledWeights(data[0].weights, data[0].targets[torch.randperm(60)])  # nothing to learn
    config = TrainConfig(epochs=200, batch_size=16, lr=1e-2, augment=(), patience=3)
    _, result = train_model(tmp_path, config, train=noise)
    assert len(result.epochs) == result.best_epoch + 3 < 200


@pytest.mark.parametrize(("limit", "clock"), [("max_seconds", "seconds"), ("max_cpu_seconds", "cpu_seconds")])
def test_a_limit_of_time_ends_the_schedule(train_model, tmp_path, limit, clock):
    config = TrainConfig.from_json({"epochs": 100_000, "batch_size": 16, "augment": [], limit: 0.5})
    _, result = train_model(tmp_path, config)
    assert 0.5 <= getattr(result, clock) < 5
    assert result.epochs[-1]["lr"] < result.epochs[0]["lr"]


def test_a_regression_is_trained_with_the_same_loop(data, tmp_path, make_model):
    train = LabelledWeights(data[0].weights, data[0].targets.float())
    model = make_model()
    model.head = torch.nn.Linear(model.embedding_features, 1)
    config = TrainConfig(epochs=3, batch_size=16, augment=())
    result = fit(model, train, train, config, tmp_path, objective=Regression(), record={}, progress=False)
    assert result.epochs[-1]["val_loss"] < result.epochs[0]["val_loss"]
    assert "val_r2" in result.epochs[0]


def test_prepare_is_applied_in_training_and_in_evaluation(train_model, data, tmp_path):
    seen = []

    def prepare(weights, generator=None):
        seen.append((len(weights["layers.0.bias"]), generator))
        return weights

    pipeline = Pipeline(prepare=prepare)  # pyright: ignore[reportArgumentType]
    pipeline(data[0].weights, torch.Generator())
    pipeline(data[1].weights)
    assert seen == [(60, None), (30, None)]
    model, result = train_model(tmp_path, TrainConfig(epochs=1, augment=(), prepare=("wrap",)))
    assert result.epochs[0]["val_loss"] > 0
    assert not model.training


@pytest.mark.parametrize(("batch_size", "largest"), [(4, 16), (16, 64), (64, 256), (500, 256)])
def test_validation_takes_batches_like_those_of_training(make_model, data, tmp_path, batch_size, largest):
    """No larger than memory is known to hold, and up to four times as large, as nothing is kept for derivatives."""
    sizes = []

    class Counting(LabelledWeights):
        def batches(self, size, generator=None):
            sizes.append(size)
            return super().batches(size, generator)

    val = Counting(data[1].weights, data[1].targets)
    config = TrainConfig(epochs=1, batch_size=batch_size, augment=())
    fit(make_model(), data[0], val, config, tmp_path, objective=Classification(), record={}, progress=False)
    assert sizes == [largest]


def test_a_loss_that_is_no_number_is_named_with_its_place(train_model, data, tmp_path):
    broken = {k: v.clone() for k, v in data[0].weights.items()}
    broken["layers.0.bias"][7] = float("nan")
    with pytest.raises(DivergedError, match=r"The loss is nan in epoch 1, step \d+ of .* Lower 'lr'"):
        train_model(tmp_path, CONFIG, train=LabelledWeights(broken, data[0].targets))


def test_another_run_in_the_folder_is_not_overwritten(train_model, make_model, data, tmp_path):
    train_model(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match=r"another config \(lr: 0.01, not 0.02\)"):
        train_model(tmp_path, TrainConfig(**{**CONFIG.to_json(), "lr": 2e-2, "augment": CONFIG.augment}))
    with pytest.raises(CheckpointError, match="another model .*width"):
        train_model(tmp_path, CONFIG, model=make_model(width=8))
    fewer = LabelledWeights({k: v[:50] for k, v in data[0].weights.items()}, data[0].targets[:50])
    with pytest.raises(CheckpointError, match=r"another networks \(\[60, 30\], not \[50, 30\]\)"):
        train_model(tmp_path, CONFIG, train=fewer)


def test_another_module_with_the_same_record_is_refused(make_model, data, tmp_path):
    def run(width):
        model = make_model(width=width)
        fit(model, data[0], data[1], CONFIG, tmp_path, objective=Classification(), record={}, progress=False)

    run(16)
    with pytest.raises(CheckpointError, match="holds a run of another module with the same record .*size mismatch"):
        run(8)


@pytest.mark.parametrize("empty", ["train", "val"])
def test_an_empty_split_is_refused(make_model, data, tmp_path, empty):
    none = LabelledWeights({name: value[:0] for name, value in data[0].weights.items()}, data[0].targets[:0])
    splits = {"train": data[0], "val": data[1], empty: none}
    with pytest.raises(SpecError, match=f"'{empty}' of fit must hold networks"):
        fit(make_model(), **splits, config=CONFIG, run_dir=tmp_path / "run", objective=Classification(), record={})
    assert not (tmp_path / "run").exists()


def test_unequal_lengths_are_refused(data):
    with pytest.raises(ShapeError, match="must have one length"):
        LabelledWeights(data[0].weights, data[0].targets[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "'epochs' of TrainConfig must be positive"),
        ({"lr": -1.0}, "'lr' of TrainConfig must be positive"),
        ({"patience": -1}, "'patience' .* must not be negative"),
        ({"average": 1.0}, r"'average' .* must lie in \[0, 1\)"),
        ({"max_seconds": 0.0}, "must be positive or None"),
        ({"learning_rate": 1.0}, "has no option"),
        ({"prepare": ["wrap", "noise"]}, r"'prepare' .* must name deterministic .* wrap or canonical .got .*'noise'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        TrainConfig.from_json(options)


def test_the_configuration_survives_json():
    config = TrainConfig(augment=("sign",), prepare=("wrap",), max_seconds=3.0)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
