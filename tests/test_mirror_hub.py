"""Publishing with huggingface_hub's own client, against a stub of the hub's HTTP API on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from typer.testing import CliRunner

from delta_fixtures import quick_disk
from deriving_fixtures import base_folder, loaded, record, update_of
from hub_stub import Hub, reached
from selectune.cli import app
from selectune.errors import InputError, StorageError
from selectune.hashing import manifest
from selectune.pipeline.publishing import push_to_hub, render_card
from selectune.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
SAID = {"name": "target_improved", "task": "cats", "against": "base", "n": 80, "verdict": "passed"}
RULE = {**SAID, "value": 0.25, "low": 0.125, "high": 0.375}
METRICS = {"scores": {"cats": {"value": 0.75, "n": 80}, "nan": {"value": "x", "n": 1}}, "rules": [RULE]}
HOSTILE = "<script>alert(1)</script> [x](javascript:y) | **a**\n---\n# b {{ 7*7 }}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="registry", scope="module")
def _registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("hub")
    base = base_folder(folder / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    registry = Registry.open(folder / "registry", create=True)
    model = loaded(base)
    record(registry, update_of(model, ["attention"]), base, folder, skill="cats", verdict="passed", metrics=METRICS)
    record(registry, update_of(model, ["mlp"], 1), base, folder, skill=HOSTILE, metrics={"rules": [{**RULE, "task": HOSTILE}]})
    return registry


@pytest.fixture(name="hub")
def _hub() -> Iterator[Hub]:
    with reached() as hub:
        yield hub


def of(registry: Registry, skill: str) -> str:
    """The id of the update of a skill."""
    return next(one.id for one in registry.log() if one.skill == skill)


def files_of(hub: Hub) -> dict[str, bytes]:
    """The files of the one repository as they are now."""
    return hub.repos["ann/cats"].commits[-1][1]


def test_a_checkpoint_is_published_and_loads_as_the_model_that_the_update_leads_to(registry: Registry, hub: Hub, tmp_path: Path) -> None:
    id_ = of(registry, "cats")
    done = push_to_hub(registry, id_, "ann/cats")
    assert (done.update, done.private, hub.repos["ann/cats"].private) == (id_, True, True)
    assert done.commit == hub.repos["ann/cats"].commits[-1][0]
    assert {"README.md", "config.json", "model.safetensors", "selectune.json"} <= set(done.files)
    for name in done.files:
        HfApi(endpoint=hub.url).hf_hub_download("ann/cats", name, local_dir=tmp_path / "got")
    assert manifest(loaded(tmp_path / "got").net).id == registry.show(id_).child
    assert sum(one.startswith("PUT /lfs/") for one in hub.asked) == 1


def test_the_same_again_makes_a_commit_without_uploading_weights(registry: Registry, hub: Hub) -> None:
    for _ in range(2):
        push_to_hub(registry, of(registry, "cats"), "ann/cats")
    assert sum(one.startswith("PUT /lfs/") for one in hub.asked) == 1


def test_the_delta_alone_is_published_with_its_card(registry: Registry, hub: Hub) -> None:
    id_ = of(registry, "cats")
    done = push_to_hub(registry, id_, "ann/cats", delta_only=True, private=False)
    assert (done.files, done.private) == (("README.md", "update.delta"), False)
    assert files_of(hub)["update.delta"] == registry.blob(registry.show(id_).delta).read_bytes()
    card: Any = ModelCard(files_of(hub)["README.md"].decode())
    assert card.data.library_name == "selectune"


def test_of_two_writers_one_is_told_that_the_other_was_faster(registry: Registry, hub: Hub) -> None:
    hub.overtake = True
    hub.repos.clear()
    with pytest.raises(StorageError, match="somebody else committed in between"):
        push_to_hub(registry, of(registry, "cats"), "ann/cats", delta_only=True)
    assert files_of(hub).keys() == {".gitattributes", "other.txt"}


def test_the_card_says_what_was_measured_and_the_hub_reads_its_metadata(registry: Registry) -> None:
    id_ = of(registry, "cats")
    text = render_card(registry.admit(id_), registry.delta(id_))
    card: Any = ModelCard(text)
    assert (card.data.license, card.data.library_name, card.data.base_model) == ("apache-2.0", "transformers", None)
    assert [(one.dataset_name, one.metric_value, one.metric_name, one.metric_args) for one in card.data.eval_results] == [
        ("cats", 0.75, "mean score of 80 samples", {"n": 80}),
        (
            "cats",
            0.25,
            "change of the mean score against base, bounds +0.1250 to +0.3750, of 80 samples",
            {"rule": "target_improved", "against": "base", "n": 80, "low": 0.125, "high": 0.375},
        ),
    ]
    again = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    assert again == yaml.safe_load(text.split("---\n")[1])["model-index"], "nothing is lost in the client's own classes"
    assert "| target\\_improved | cats | base | +0.2500 | +0.1250 to +0.3750 | 80 | passed |" in text
    assert f"| update | {id_} |" in text
    assert "Nobody has signed this update." in text
    assert registry.where not in text, "no folder of this machine"


def test_what_an_update_says_is_text_in_its_card(registry: Registry) -> None:
    id_ = of(registry, HOSTILE)
    text = render_card(registry.admit(id_), registry.delta(id_))
    assert "<script" not in text
    assert "[x](javascript" not in text
    assert "**a**" not in text
    assert "49" not in text.split("## Where")[0]
    assert text.count("\n---\n") == 1, "the metadata ends once"
    card: Any = ModelCard(text)
    assert card.data.tags == ["selectune"]
    assert card.data.eval_results[0].dataset_name == "script alert 1 /script x javascript:y a --- b 7 7"


@pytest.mark.parametrize("repo", ["cats", "a/b/c", "../x", "ann/ca ts", "https://x/y"])
def test_a_name_that_is_no_repository_is_refused(registry: Registry, repo: str) -> None:
    with pytest.raises(InputError, match="is no repository"):
        push_to_hub(registry, of(registry, "cats"), repo)


def test_nothing_is_sent_while_the_client_is_offline(registry: Registry) -> None:
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(registry, of(registry, "cats"), "ann/cats", delta_only=True)


def test_the_verb_publishes_by_name(registry: Registry, hub: Hub) -> None:
    words = ["publish", of(registry, "cats")[:12], "ann/cats", "--delta-only", "--registry", registry.where]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"ann/cats (private): update {of(registry, 'cats')[:12]}, 2 files, commit " in done.stdout
