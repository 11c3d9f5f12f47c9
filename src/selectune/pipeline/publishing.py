"""An update on the Hugging Face Hub: its full checkpoint, or its delta alone, with a model card that says what was measured."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from selectune.errors import InputError, ObjectDamaged, Overtaken, StorageError
from selectune.hashing import file_digest
from selectune.pipeline.recording import MODEL
from selectune.pipeline.slots import weight_folder
from selectune.pipeline.versions import save_full
from selectune.registry.hub import using
from selectune.reporting import wording

if TYPE_CHECKING:
    from selectune.delta import Delta
    from selectune.registry import Admitted, Registry, Update

__all__ = ["Published", "push_to_hub", "render_card"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}\Z")
_ODD = re.compile(r"[^\w .,:%/+-]+")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#|!~&$:@^=])")
_CARD_LIMIT = 1 << 20
_DELTA = "update.delta"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What was published."""

    update: str
    repo: str
    commit: str
    files: tuple[str, ...]
    private: bool


def push_to_hub(registry: Registry, identity: str, repo: str, *, private: bool = True, delta_only: bool = False) -> Published:
    """Publishes an update in the model repository `repo`, which is made if it is not there, as one commit on top of what was there.

    `private` counts where the repository is made; one that is there stays as it is. The endpoint and the token are huggingface_hub's own
    (`HF_ENDPOINT`, `HF_TOKEN`). Raises InputError for a name that is none, StorageError where the hub refuses or somebody else was
    faster, and what `save_full` raises; a revoked version is not published.
    """
    if not _REPO.match(repo):
        raise InputError(f"{repo[:80]!r} is no repository", where="publish", then="Give owner/name.")
    admitted = registry.admit(identity)
    with tempfile.TemporaryDirectory(prefix="selectune-") as place:
        folder = Path(place) / "model"
        if delta_only:
            folder.mkdir()
            shutil.copyfile(registry.blob(admitted.update.delta), folder / _DELTA)
            if file_digest(folder / _DELTA) != admitted.update.delta:
                raise ObjectDamaged("the delta was changed while it was read", where=registry.where, then="See: selectune verify")
        else:
            save_full(registry, admitted.update.id, folder)
        card = render_card(admitted, registry.delta(admitted.update.id), delta_only=delta_only)
        (folder / "README.md").write_text(card, "utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in files}
        commit, is_private = _commit(repo, names, private=private, message=f"Update {admitted.update.id[:12]}")
    return Published(update=admitted.update.id, repo=repo, commit=commit, files=tuple(names), private=is_private)


def _commit(repo: str, files: Mapping[str, Path], *, private: bool, message: str) -> tuple[str, bool]:
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        with using(repo):
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            info = api.model_info(repo)
            operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
            done = api.create_commit(repo, operations, commit_message=message, parent_commit=info.sha)
    except Overtaken as error:
        raise StorageError(error.what, where=repo, then="Publish again.") from error
    return str(done.oid), bool(info.private)


def render_card(admitted: Admitted, delta: Delta, *, delta_only: bool = False) -> str:
    """The model card: metadata as YAML, and the page. Everything that the update says is text there, whatever it holds.

    `delta` is the update's own: those that lead to it from the base may be fewer, and say less of it alone.
    """
    update = admitted.update
    environment = Environment(
        loader=PackageLoader("selectune.reporting"),
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    # Markdown, not HTML: `_finalize` escapes for both.
    page = environment.get_template("card.md.j2").render(
        update=update,
        notes=[note for note in admitted.notes if "single person" in note or "retired" in note],
        approvals=list(admitted.notes),
        patterns=list(delta.patterns),
        tensors=len(delta.tensors),
        rules=_rules(update),
        number=_number,
        delta_only=delta_only,
    )
    head = yaml.safe_dump(_metadata(update, delta_only=delta_only), sort_keys=False, allow_unicode=False)
    return f"---\n{head}---\n\n{page}"


def _metadata(update: Update, *, delta_only: bool) -> dict[str, Any]:
    name = str(update.meta.get(MODEL, ""))
    found: dict[str, Any] = {"library_name": "selectune" if delta_only else "transformers", "tags": ["selectune"]}
    # A folder on somebody's disk is nobody else's business.
    if _REPO.match(name) and not Path(name).exists():
        found |= {"base_model": name, "base_model_relation": "finetune"}
    if (licence := _licence(name)) is not None:
        found["license"] = licence
    if results := _results(update):
        found["model-index"] = [{"name": _words(update.skill) or update.id[:12], "results": results}]
    return found


def _results(update: Update) -> list[dict[str, Any]]:
    """What was measured, by task, as the hub's model index has it: the mean score, and each change that a rule judged, with its bounds.

    The index has no field for an interval: it stands in the metric's name, for people, and in its `args`.
    """
    scores = update.metrics.get("scores")
    rows = [*scores.items()] if isinstance(scores, Mapping) else []
    found = [(task, _score(said)) for task, said in rows] + [(str(rule.get("task")), _change(rule)) for rule in _rules(update)]
    metrics: dict[str, list[dict[str, Any]]] = {}
    for task, metric in found:
        if metric is not None:
            metrics.setdefault(_words(task), []).append(metric)
    return [
        {"task": {"type": "text-generation"}, "dataset": {"name": task, "type": task}, "metrics": mine} for task, mine in metrics.items()
    ]


def _score(said: Any) -> dict[str, Any] | None:
    match said:
        case {"value": int() | float() as value, "n": int(n)} if math.isfinite(value):
            return {"type": "score", "name": f"mean score of {n} samples", "value": value, "args": {"n": n}}
    return None


def _change(rule: Mapping[str, Any]) -> dict[str, Any] | None:
    match rule:
        case {"name": str(name), "against": str(against), "value": int() | float() as value, "n": int(n)} if math.isfinite(value):
            low, high = (_number(rule.get(key)) for key in ("low", "high"))
            said = f"change of the mean score against {_words(against)}, bounds {low} to {high}, of {n} samples"
            bounds = {key: rule[key] for key in ("low", "high") if isinstance(rule.get(key), int | float)}
            return {
                "type": "score_change",
                "name": said,
                "value": value,
                "args": {"rule": _words(name), "against": _words(against), "n": n, **bounds},
            }
    return None


def _words(text: Any) -> str:
    """Text of others for the metadata, which some programs show as a page: without what markup is made of."""
    return " ".join(_ODD.sub(" ", wording.plain(text)).split())[:200]


def _rules(update: Update) -> list[Mapping[str, Any]]:
    """The gate's rules that were recorded with an update."""
    rules = update.metrics.get("rules")
    return [rule for rule in rules if isinstance(rule, Mapping)] if isinstance(rules, list | tuple) else []


def _licence(name: str) -> str | None:
    """The licence that the base's own card names, where that is on this disk."""
    home = weight_folder(name) if name else None
    card = home / "README.md" if home else None
    if card is None or not card.is_file() or card.stat().st_size > _CARD_LIMIT:
        return None
    parts = card.read_text("utf-8", errors="replace").split("---\n", 2)
    try:
        found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError:
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence if isinstance(licence, str) and re.fullmatch(r"[a-z0-9.+-]{1,60}", licence) else None


def _number(value: Any) -> str:
    return wording.number(float(value), 4, signed=True) if isinstance(value, int | float) else wording.DASH


def _finalize(value: Any) -> Any:
    """Text of others, so that it is nothing but text in Markdown and in the HTML that is made of it."""
    return value if isinstance(value, Markup) else _SPECIAL.sub(r"\\\1", " ".join(wording.plain(value).split())).replace("\\<", "&lt;")
