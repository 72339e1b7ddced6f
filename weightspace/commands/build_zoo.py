"""``weightspace zoo build``: one subcommand per recipe, its options read off the recipe's dataclass."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from weightspace.commands.console import say
from weightspace.zoo.build import build as build_recipe
from weightspace.zoo.recipe import AbstractRecipe, known_recipes, make_recipe

__all__ = ["build"]

build = App(
    name="build",
    help="Train the networks of a recipe into a zoo. The same command goes on where a killed build stopped.",
)


def _command(recipe: type[AbstractRecipe]) -> Callable[..., int]:
    def command(
        *,
        out: Path,
        options: Annotated[recipe, Parameter(name="*")] = recipe(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
        workers: int | None = None,
        title: str = "",
        licence: str = "",
    ) -> int:
        """Build, or go on building, a zoo.

        Args:
            out: Folder of the zoo, made if it is not there.
            options: Options of the recipe.
            workers: Processes that train; as many as there are cores if not given. Does not change the zoo.
            title: One line about the zoo, for people.
            licence: Licence of the weights, an SPDX name where there is one.
        """
        zoo = build_recipe(options, out, workers=workers, title=title, licence=licence)
        say(str(zoo.info()))
        return 0

    return command


for _name in known_recipes():
    _recipe = type(make_recipe(_name))
    build.command(_command(_recipe), name=_name, help=inspect.cleandoc(_recipe.__doc__ or "").split("\n\n")[0])
