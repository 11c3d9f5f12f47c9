"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_REGISTRY = "./selectune-registry"

FamilyFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--families", metavar="FILE", help="Spellings of a model family, to be gone by before selectune's own; give several in order."
    ),
]
SigningKey = Annotated[
    str | None, typer.Option("--key", metavar="KEY", help="Sign it with this private key, by its name or file; a policy may want that.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
RegistryUrl = Annotated[
    str, typer.Option("--registry", envvar="SELECTUNE_REGISTRY", metavar="DIR-or-URL", help="Where updates are kept.", show_default=True)
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override one value of the recipe, such as skills[0].optim.lr=3e-6.")
]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub id on this disk, `embedded`, a registry name or id, or `arch:MODEL_TYPE`.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The folder that the run is written to.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept with the move.")]
