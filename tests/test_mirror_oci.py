"""Updates as an OCI image layout: by the rules of the specification, the same bytes each time, and nothing believed that is read back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from delta_fixtures import quick_disk
from governance_fixtures import Governed, governed, make_keys
from selectune.cli import app
from selectune.errors import (
    EventMalformed,
    ObjectDamaged,
    Oversize,
    RegistryError,
    RevokedVersion,
    SelectuneError,
    StorageError,
    VerifyFailed,
)
from selectune.hashing import canonical, digest
from selectune.registry import Registry, Update
from selectune.registry.oci import DELTA_TYPE, FILE_TYPE, MANIFEST_TYPE, UPDATE_TYPE, add_layout, read_layout, write_layout

MEDIA = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}\Z")
"""RFC 6838, 4.2."""
REFERENCE = re.compile(r"[A-Za-z0-9]+((?:[-._:@+]|--)[A-Za-z0-9]+)*(/[A-Za-z0-9]+((?:[-._:@+]|--)[A-Za-z0-9]+)*)*\Z")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_disk(monkeypatch)


@pytest.fixture(name="registry")
def _registry(tmp_path: Path, deltas: list[Path]) -> Registry:
    registry = Registry.open(tmp_path / "registry", create=True)
    parent = None
    for number, path in enumerate(deltas):
        files: dict[str, Path | bytes] = {"result.json": b'{"n":%d}' % number, "report.html": b"<p>"}
        parent = registry.add(Update(parent=parent, skill=f"s{number}", verdict="passed"), path, files)
    registry.promote(parent or "", "production", "because", "ann")
    return registry


def check_by_the_specification(folder: Path) -> list[dict[str, Any]]:
    """What OCI image specification 1.1 asks of a layout; the manifests."""
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert {path.name for path in folder.iterdir()} == {"oci-layout", "index.json", "blobs"}
    for path in (folder / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert path.is_file()
        assert not path.is_symlink()
    index = json.loads((folder / "index.json").read_bytes())
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    references = [row["annotations"]["org.opencontainers.image.ref.name"] for row in index["manifests"]]
    assert len(references) == len(set(references))
    assert all(REFERENCE.match(one) for one in references)
    manifests = []
    for row in index["manifests"]:
        manifest = json.loads(checked(row, folder))
        assert row["mediaType"] == manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert row["artifactType"] == manifest["artifactType"]
        assert MEDIA.match(manifest["artifactType"])
        assert manifest["schemaVersion"] == 2
        assert manifest["layers"], "at least one layer"
        for one in (manifest["config"], *manifest["layers"]):
            checked(one, folder)
        assert manifest["config"]["mediaType"] != "application/vnd.oci.empty.v1+json"
        manifests.append(manifest)
    return manifests


def checked(row: dict[str, Any], folder: Path) -> bytes:
    """The object of a descriptor that is as it has to be."""
    assert row.keys() <= {"mediaType", "digest", "size", "annotations", "artifactType", "urls", "data", "platform"}
    assert MEDIA.match(row["mediaType"])
    algorithm, _, encoded = row["digest"].partition(":")
    assert algorithm == "sha256"
    data: bytes = (folder / "blobs" / algorithm / encoded).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (row["size"], encoded)
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in row.get("annotations", {}).items())
    return data


def test_a_layout_follows_the_specification_and_holds_each_update_with_its_ancestors(registry: Registry, tmp_path: Path) -> None:
    newest = registry.show("production")
    written = write_layout(registry, ["production"], tmp_path / "out")
    assert [one.skill for one in written] == ["s0", "s1", "s2"]
    manifests = check_by_the_specification(tmp_path / "out")
    assert len(manifests) == 4, "one reference for each id, and one for the name"
    last = manifests[-1]
    assert last["annotations"]["selectune.update"] == newest.id
    config = (tmp_path / "out" / "blobs" / "sha256" / last["config"]["digest"].removeprefix("sha256:")).read_bytes()
    assert (config, digest("update", json.loads(config))) == (canonical(newest.body()), newest.id)
    assert [(one["mediaType"], one["annotations"]["org.opencontainers.image.title"]) for one in last["layers"]] == [
        (DELTA_TYPE, "update.delta"),
        (FILE_TYPE, "report.html"),
        (FILE_TYPE, "result.json"),
    ]
    assert last["layers"][0]["digest"] == f"sha256:{newest.delta}"


def test_the_same_updates_are_the_same_bytes(registry: Registry, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_layout(registry, ["production"], tmp_path / name)
    one, two = ({path.relative_to(tmp_path / name): path.read_bytes() for path in files(tmp_path / name)} for name in ("one", "two"))
    assert one == two


def files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_exported_is_read_back_and_added_elsewhere_under_the_same_ids(registry: Registry, tmp_path: Path) -> None:
    write_layout(registry, ["production"], tmp_path / "out")
    found = read_layout(tmp_path / "out")
    assert [one.update.id for one in found] == [one.id for one in registry.log()[::-1]]
    assert (found[-1].update.names, found[0].update.names) == (("production",), ())
    assert found[-1].attachments["result.json"].read_bytes() == b'{"n":2}'
    other = Registry.open(tmp_path / "other", create=True)
    ids = add_layout(other, tmp_path / "out", "ben")
    assert ids == add_layout(other, tmp_path / "out", "ben") == tuple(one.update.id for one in found)
    assert other.verify().demand().updates == 3
    assert other.names() == {}, "a name is moved by somebody who says why"
    assert other.attachment(ids[0], "result.json") == b'{"n":0}'


def test_an_edited_copy_is_not_the_registry(registry: Registry, tmp_path: Path) -> None:
    write_layout(registry, ["production"], tmp_path / "out")
    (tmp_path / "out" / "blobs" / "sha256" / registry.show("production").delta).write_bytes(b"")
    registry.verify().demand()


def test_a_name_that_the_specification_has_no_word_for_is_left_out(registry: Registry, tmp_path: Path) -> None:
    registry.promote("production", "odd__name-", "because", "ann")
    write_layout(registry, ["odd__name-"], tmp_path / "out")
    check_by_the_specification(tmp_path / "out")
    assert read_layout(tmp_path / "out")[-1].update.names == ("production",)


def test_a_folder_that_is_there_is_left_alone_and_a_damaged_object_leaves_none(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    with pytest.raises(StorageError, match="is there already and not empty"):
        write_layout(registry, ["production"], tmp_path / "there")
    attached = registry.blob(registry.log()[-1].attachments["result.json"])
    attached.write_bytes(b"{}")
    with pytest.raises(ObjectDamaged, match="is damaged"):
        write_layout(registry, ["production"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["registry", "there"]


def test_a_revoked_version_is_not_exported(tmp_path: Path, deltas: list[Path]) -> None:
    keys = make_keys(tmp_path / "keys")
    made: Governed = governed(tmp_path / "registry", keys, deltas)
    made.registry.revoke(made.ids[1], "wrong data", "ben", keys["ben"])
    with pytest.raises(RevokedVersion):
        write_layout(made.registry, [made.ids[1]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object], *, config: bool = False) -> None:
    """The layout with its last manifest (or that one's config) changed, and every digest on the way made to fit again."""
    blobs = folder / "blobs" / "sha256"
    index = json.loads((folder / "index.json").read_bytes())
    row = index["manifests"][-1]
    index["manifests"] = [row]
    manifest = json.loads((blobs / row["digest"][7:]).read_bytes())
    if config:
        document = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
        change(document)
        manifest["config"] |= stored(blobs, canonical(document))
    else:
        change(manifest)
    row |= stored(blobs, canonical(manifest))
    (folder / "index.json").write_bytes(canonical(index))


def stored(blobs: Path, data: bytes) -> dict[str, Any]:
    """Puts an object into the layout; where, as a descriptor says it."""
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of one of the two files that the layout begins with."""

    def edit(folder: Path) -> None:
        document = json.loads((folder / name).read_bytes())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return edit


def largest(folder: Path) -> Path:
    """The object with the most bytes: a delta."""
    return max((folder / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def linked(path: Path) -> None:
    """A link to a copy elsewhere, of the very same bytes."""
    copy = path.parent.parent.parent.parent / f"copy-of-{path.name[:8]}"
    path.rename(copy)
    path.symlink_to(copy)


def first(**fields: Any) -> Callable[[Path], None]:
    """The first row of the index with other fields."""
    return edited("index.json", lambda document: document["manifests"][0].update(fields))


def layer(**fields: Any) -> Callable[[Path], None]:
    """The first layer with other fields."""
    return lambda folder: rewritten(folder, lambda manifest: manifest["layers"][0].update(fields))


def body(**fields: Any) -> Callable[[Path], None]:
    """The update with other fields."""
    return lambda folder: rewritten(folder, lambda document: document.update(fields), config=True)


HOSTILE: list[tuple[str, Callable[[Path], object], type[SelectuneError], str]] = [
    ("no layout file", lambda f: (f / "oci-layout").unlink(), RegistryError, "there is no file oci-layout"),
    ("another version", edited("oci-layout", lambda d: d.update(imageLayoutVersion="2.0.0")), RegistryError, "another version"),
    ("a layout file that is a list", lambda f: (f / "oci-layout").write_text("[]"), EventMalformed, "no JSON object"),
    ("an index that is no JSON", lambda f: (f / "index.json").write_text("{"), EventMalformed, "not strict JSON"),
    ("a key twice", lambda f: (f / "index.json").write_text('{"manifests":[],"manifests":[]}'), EventMalformed, "appears twice"),
    ("no list of manifests", edited("index.json", lambda d: d.pop("manifests")), EventMalformed, "no list"),
    ("too many manifests", edited("index.json", lambda d: d.update(manifests=[0] * 10_001)), EventMalformed, "at most 10,000"),
    ("no update", edited("index.json", lambda d: d["manifests"].clear()), RegistryError, "holds no update"),
    ("a digest that is a path", first(digest="sha256:../../x"), EventMalformed, "desc"),
    ("another digest", first(digest="sha512:" + "0" * 64), EventMalformed, "desc"),
    (
        "a missing object",
        edited("index.json", lambda d: d["manifests"][0].update(digest="sha256:" + "0" * 64)),
        RegistryError,
        "no file 0000",
    ),
    ("a negative size", first(size=-1), EventMalformed, "no descriptor"),
    ("a size that is true", first(size=True), EventMalformed, "no descriptor"),
    (
        "a size that does not fit",
        edited("index.json", lambda d: d["manifests"][0].update(size=7)),
        ObjectDamaged,
        "not what its descriptor",
    ),
    ("a huge manifest", first(size=1 << 40), Oversize, "over the limit"),
    ("a flipped bit", lambda f: flip(largest(f)), ObjectDamaged, "not what its descriptor says"),
    ("a longer delta", lambda f: largest(f).write_bytes(largest(f).read_bytes() + b"x"), ObjectDamaged, "not what its descriptor says"),
    ("a link", lambda f: linked(largest(f)), VerifyFailed, "is a link"),
    ("a folder of links", lambda f: linked(f / "blobs" / "sha256"), VerifyFailed, "sha256 is a link"),
    ("no layers", lambda f: rewritten(f, lambda m: m["layers"].clear()), EventMalformed, "no manifest of an update"),
    ("other layers", lambda f: rewritten(f, lambda m: m["layers"].pop()), EventMalformed, "not the objects that its update names"),
    ("another order", lambda f: rewritten(f, lambda m: m["layers"].append(m["layers"].pop(1))), EventMalformed, "not the objects"),
    (
        "another delta",
        layer(digest="sha256:" + "0" * 64),
        EventMalformed,
        "not",
    ),
    (
        "another kind of layer",
        layer(mediaType=FILE_TYPE),
        EventMalformed,
        "no descriptor",
    ),
    ("no config", lambda f: rewritten(f, lambda m: m.pop("config")), EventMalformed, "no descriptor of"),
    ("an unknown field", body(evil=1), EventMalformed, "unknown or missing fields"),
    ("a field of another type", body(skill=7), EventMalformed, "has int as skill"),
    ("a file named as a path", body(attachments={"../x": "0" * 64}), EventMalformed, "name"),
    (
        "a file that is a list",
        lambda f: rewritten(f, lambda b: b.update(attachments={"x": []}), config=True),
        EventMalformed,
        "no sha256",
    ),
    ("another delta named", body(delta="0" * 64), EventMalformed, "not the objects"),
]


@pytest.fixture(name="exported", scope="module")
def _exported(tmp_path_factory: pytest.TempPathFactory, deltas: list[Path]) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    registry = Registry.open(folder / "registry", create=True)
    files_: dict[str, Path | bytes] = {"result.json": b"{}", "report.html": b"<p>"}
    registry.add(Update(skill="s0"), deltas[0], files_)
    write_layout(registry, [registry.log()[0].id], folder / "out")
    return folder / "out"


@pytest.mark.parametrize(("spoil", "error", "words"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_hostile_layout_is_refused(
    spoil: Callable[[Path], object], error: type[SelectuneError], words: str, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(exported, folder)
    assert len(read_layout(folder)) == 1
    spoil(folder)
    with pytest.raises(error, match=words) as caught:
        read_layout(folder)
    assert type(caught.value) is error


def test_what_is_no_update_is_passed_over(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(exported, folder)
    other = {"mediaType": MANIFEST_TYPE, "digest": f"sha256:{'0' * 64}", "size": 1}
    edited("index.json", lambda d: d["manifests"].extend([other, {"mediaType": "text/plain"}, 7]))(folder)
    assert len(read_layout(folder)) == 1
    assert UPDATE_TYPE not in other.values()


def test_the_verbs_export_a_layout_and_import_it(registry: Registry, tmp_path: Path) -> None:
    layout, elsewhere = str(tmp_path / "out"), str(tmp_path / "elsewhere")
    done = CliRunner().invoke(app, ["export", "production", layout, "--oci", "--registry", registry.where])
    assert done.exit_code == 0, done.output
    assert "3 updates as an OCI image layout" in done.stdout
    done = CliRunner().invoke(app, ["import", layout, "--registry", elsewhere])
    assert done.exit_code == 0, done.output
    assert [one.id for one in Registry.open(elsewhere).log()] == [one.id for one in registry.log()]
    assert CliRunner().invoke(app, ["import", layout, "--base", "x", "--registry", elsewhere]).exit_code == 2
