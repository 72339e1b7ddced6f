"""``weightspace train`` and ``weightspace evaluate``."""

import datetime
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from weightspace.commands.command_line import given
from weightspace.commands.console import say, text_table
from weightspace.commands.option_values import literals
from weightspace.commands.report.classification import RESULTS_HEADER, results_rows, write_report
from weightspace.commands.report.runs import read_run
from weightspace.tasks import classify
from weightspace.tasks import evaluate as evaluate_run
from weightspace.training import TrainConfig
from weightspace.zoo import Zoo
from weightspace.zoo.splits import DEFAULT_FRACTIONS, DEFAULT_SALT

__all__ = ["evaluate", "train"]


def train(
    zoo: Path,
    *,
    out: Path,
    model: str = "operator",
    model_config: dict[str, str] | None = None,
    options: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 (frozen)
    salt: str = DEFAULT_SALT,
    fractions: dict[str, float] | None = None,
    device: str = "cpu",
) -> None:
    """Train a metanetwork to tell the label of a network from its weights, and score it on unseen images.

    A run that was stopped goes on; one that has ended is only scored and drawn again.

    Args:
        zoo: Folder of the zoo.
        out: Folder of the run: config, metrics, checkpoint, predictions, figures and index.html.
        model: operator, gmn, dws, nfn, nft, unf, neural_graph, neural_graph_transformer, scale_gmn, deep_sets,
            weight_tokens, mlp or statnn.
        model_config: Options of the metanetwork, one at a time: --model-config.width 32.
        options: How to train.
        salt: Decides which items are in the splits train, val and test.
        fractions: Expected shares of the items there instead of 0.72, 0.11 and 0.17: --fractions.train 0.8
            --fractions.val 0.1 --fractions.test 0.1.
        device: Where the metanetwork runs, for instance cuda.
    """
    opened = Zoo.open(zoo)
    shares = fractions or DEFAULT_FRACTIONS
    classify(
        opened,
        out,
        model=model,
        model_config=literals(model_config),
        config=options,
        salt=salt,
        fractions=shares,
        device=device,
    )
    date = datetime.date.today().isoformat()
    page = write_report(opened, {model: out}, out, date=date, commands=given())
    say(text_table(RESULTS_HEADER, results_rows([read_run(model, out)])))
    say(f"\nThe page with figures: {page}")


def evaluate(
    run: Path,
    *,
    zoo: Path,
    split: str = "test",
    device: str = "cpu",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Score a trained metanetwork on a split of a zoo.

    Args:
        run: Folder that training wrote.
        zoo: Folder of the zoo it was trained on, or of another one of the same architecture.
        split: train, val or test by the split of the run; or all rows.
        device: Where the metanetwork runs, for instance cuda.
        as_json: Print JSON for programs.
    """
    scores = evaluate_run(run, Zoo.open(zoo), split=split, device=device)
    say(json.dumps(scores.to_json(), indent=2) if as_json else str(scores))
