"""A registry's updates and names shown in MLflow: an update is a logged model, a name an alias of a registered model.

One way: MLflow is told, and nothing that stands there is believed. Anybody with access to it can edit a tag or move an alias; the next
mirroring puts both back and says so. No weights go there, so nothing can be loaded from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from selectune.errors import InputError, MissingPackage, StorageError
from selectune.pipeline.tracking import PACKAGES, PROJECT

if TYPE_CHECKING:
    from selectune.registry import Registry, Update

__all__ = ["Mirrored", "mirror_mlflow"]

_ID = "selectune.update"
_TYPE = "selectune-update"
_ALIAS = re.compile(r"(?!v\d+\Z|latest\Z)[\w-]+\Z")
"""What MLflow lets an alias be."""
_KEY = re.compile(r"[^\w. /-]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirrored:
    """What was done to MLflow; a second mirroring of the same registry does nothing."""

    added: tuple[str, ...]
    """Updates that were not there."""
    aliases: Mapping[str, str]
    """Names that were set or moved, with their updates."""
    notes: tuple[str, ...]
    """What somebody had changed there and was put back, and what has no place there."""


def mirror_mlflow(registry: Registry, uri: str, name: str | None = None, *, model: str = PROJECT) -> Mirrored:
    """Shows every update, or with `name` that update or name and its ancestors, in the MLflow at `uri`: a database's URL or a server's.

    `model` is what the registered model and the experiment are called there. An update's revocation and approvals are its tags as they are
    today. Raises MissingPackage without MLflow, StorageError where it cannot be reached or refuses.
    """
    if missing := [module for module in PACKAGES["mlflow"] if find_spec(module) is None]:
        raise MissingPackage(f"mirroring needs {' and '.join(missing)}", where="mlflow", then="pip install 'selectune[mlflow]'")
    found, standing = registry.signed_log(name)
    with _using(uri) as client:
        there = _Place(client, model)
        added, notes = [], []
        for update in reversed(found):
            made, said = there.update(update, standing.notes(update.id))
            added += [update.id] * made
            notes += said
        kept = {update.id for update in found}
        names = {alias: id_ for alias, id_ in registry.names().items() if id_ in kept}
        aliases, said = there.names(names, whole=name is None)
    return Mirrored(added=tuple(added), aliases=aliases, notes=(*notes, *said))


class _Place:
    """One experiment and one registered model of an MLflow."""

    def __init__(self, client: Any, model: str) -> None:
        self._client, self._model = client, model
        known = client.get_experiment_by_name(model)
        self._experiment = known.experiment_id if known else client.create_experiment(model)
        if not client.search_registered_models(f"name = '{_quoted(model)}'"):
            client.create_registered_model(model)

    def update(self, update: Update, notes: Sequence[str]) -> tuple[bool, list[str]]:
        """Shows one update; whether it is new there, and what had been changed."""
        tags = _tags(update, notes)
        found = self._client.search_logged_models([self._experiment], filter_string=f"tags.`{_ID}` = '{update.id}'")
        kept = found[0] if found else self._client.create_logged_model(
            self._experiment, name=update.id[:12], source_run_id=self._run(update), tags=tags, params=_params(update), model_type=_TYPE
        )  # fmt: skip
        said = []
        if odd := {key: value for key, value in tags.items() if kept.tags.get(key) != value}:
            self._client.set_logged_model_tags(kept.model_id, odd)
            said.append(f"update {update.id[:12]}: {', '.join(sorted(odd))} was brought up to date")
        # Ready is said last: an interrupted mirroring is gone on with.
        if str(kept.status) != "READY":
            when = _milliseconds(update.created)
            for key, value in _metrics(update).items():
                self._client.log_metric(kept.source_run_id, key, value, timestamp=when, step=0, model_id=kept.model_id)
            self._client.set_terminated(kept.source_run_id)
            self._client.finalize_logged_model(kept.model_id, "READY")
        if self._version(update.id) is None:
            self._client.create_model_version(
                self._model, source=f"models:/{kept.model_id}", run_id=kept.source_run_id, tags={_ID: update.id}, model_id=kept.model_id
            )
        return not found, said

    def _run(self, update: Update) -> str:
        """The run that an update's metrics belong to, which MLflow wants."""
        found = self._client.search_runs([self._experiment], filter_string=f"tags.`{_ID}` = '{update.id}'")
        if found:
            return str(found[0].info.run_id)
        run = self._client.create_run(self._experiment, run_name=update.id[:12], tags={_ID: update.id})
        return str(run.info.run_id)

    def _version(self, id_: str) -> str | None:
        found = self._client.search_model_versions(f"name = '{_quoted(self._model)}' and tags.`{_ID}` = '{id_}'")
        return min((str(one.version) for one in found), key=int, default=None)

    def names(self, names: Mapping[str, str], *, whole: bool) -> tuple[dict[str, str], list[str]]:
        """Points the aliases where the registry's names point; with `whole` those that the registry does not have are removed."""
        there = {alias: str(version) for alias, version in self._client.get_registered_model(self._model).aliases.items()}
        moved, said = {}, []
        for alias, id_ in names.items():
            wanted = self._version(id_)
            if not _ALIAS.match(alias):
                said.append(f"{alias} cannot be an alias in MLflow and was left out")
            elif there.get(alias) != wanted:
                self._client.set_registered_model_alias(self._model, alias, wanted)
                moved[alias] = id_
                if alias in there:
                    said.append(f"{alias} pointed to version {there[alias]} there, and points to version {wanted} as the registry says")
        for alias in sorted(there.keys() - names.keys()) if whole else ():
            self._client.delete_registered_model_alias(self._model, alias)
            said.append(f"{alias} is no name of the registry and was removed there")
        return moved, said


@contextmanager
def _using(uri: str) -> Iterator[Any]:
    """A client; its errors are errors of ours."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if uri.partition(":")[0].split("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql", "http", "https"):
        raise InputError(f"{uri[:80]!r} is no address of an MLflow with a model registry", then="Give sqlite:///FILE or http://HOST:PORT.")
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        text = " ".join(str(error).split())[:300]
        raise StorageError(f"MLflow refused ({text})", where="mlflow", then="Is the address right, and the server's version 3?") from error


def _tags(update: Update, notes: Sequence[str]) -> dict[str, str]:
    said = {
        "update": update.id,
        "parent": update.parent or "none: its parent is the base model",
        "base_model_id": update.base,
        "model_id": update.child,
        "delta": update.delta,
        "skill": update.skill,
        "verdict": update.verdict or "not judged",
        "actor": update.actor,
        "created": update.created,
        "notes": "\n".join(notes) or "none",
        **{f"attachment.{name}": value for name, value in update.attachments.items()},
    }
    return {f"selectune.{key}": value[:5000] for key, value in said.items()}


def _params(update: Update) -> dict[str, str]:
    recipe = update.recipe if isinstance(update.recipe, Mapping) else {"name": update.recipe}
    rows = {f"recipe.{key}": value for key, value in recipe.items()} | {"model": update.meta.get("model", "")}
    return {_KEY.sub("_", key)[:250]: str(value)[:5000] or "none" for key, value in rows.items()}


def _metrics(update: Update) -> dict[str, float]:
    """Every number that was measured, by its path: ``scores/cats/value``."""
    found: dict[str, float] = {}
    parts: list[tuple[str, Any]] = [("", update.metrics)]
    while parts:
        path, value = parts.pop()
        if isinstance(value, Mapping):
            parts += [(f"{path}/{key}", each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            parts += [(f"{path}/{number}", each) for number, each in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[_KEY.sub("_", path.lstrip("/"))[:250]] = float(value)
    return dict(sorted(found.items()))


def _milliseconds(utc: str) -> int:
    return int(datetime.fromisoformat(utc).timestamp() * 1000)


def _quoted(name: str) -> str:
    if "'" in name or "\\" in name:
        raise InputError(
            f"{name[:80]!r} cannot be the name of a registered model", where="mlflow", then="Use letters, digits, `-` and `_`."
        )
    return name
