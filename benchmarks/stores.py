"""What keeps the versions of a model, each used as its documents say: selectune, a plain copy, MLflow, Git LFS and git-theta.

Every store begins with a version that lies on the disk as a folder that `save_pretrained` wrote, but for `Ours`, which begins as a training
ends, with the model in memory. Nothing here measures; see `rivals.py`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file

from selectune.components import Selection
from selectune.delta import Snapshot, extract
from selectune.models import Model
from selectune.pipeline.importing import import_checkpoint
from selectune.pipeline.recording import MODEL
from selectune.pipeline.versions import save_full
from selectune.registry import Registry, Update
from selectune.untrusted import read_header

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that has just ended: the model holds what it learned."""

    model: Model
    before: Snapshot
    selection: Selection


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of the model: the base is number 0."""

    number: int
    skill: str
    folder: Path
    """Its whole checkpoint."""
    base: Path
    """The base's."""
    trained: Trained | None = None
    """None for the base."""


def nbytes(folder: Path) -> int:
    """What the files below a folder weigh."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def digests(file: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """By tensor of a safetensors file: its dtype, its shape and the sha256 of its bytes."""
    begin, rows = read_header(file)
    found = {}
    with file.open("rb") as stream:
        for name, row in rows.items():
            start, stop = row["data_offsets"]
            stream.seek(begin + start)
            found[name] = (row["dtype"], tuple(row["shape"]), hashlib.sha256(stream.read(stop - start)).hexdigest())
    return found


def widened(source: Path, target: Path) -> None:
    """The same numbers in fp32."""
    save_file({name: tensor.float() for name, tensor in load_file(source).items()}, target, metadata={"format": "pt"})


class Store:
    """Keeps versions in a folder of its own."""

    settings: ClassVar[str]
    names: ClassVar[str]
    """What it tells of where a name such as `production` pointed before."""
    slow: ClassVar[bool] = False
    """Whether it takes part in the last round alone."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(parents=True)

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be used here; None where it can."""
        return None

    @classmethod
    def release(cls) -> str:
        """Its version."""
        return ""

    def ready(self, one: Version) -> None:
        """Puts a version where the tool expects a user to have saved it; not counted."""

    def commit(self, one: Version) -> None:
        """Keeps a version."""
        raise NotImplementedError

    def restore(self, number: int, out: Path) -> Path:
        """Brings a version back: its file of weights. `out` is a new folder, for tools that write where one says."""
        raise NotImplementedError

    def wanted(self, one: Version) -> Path:
        """The file whose tensors `restore` has to give."""
        return one.folder / WEIGHTS

    @property
    def kept(self) -> Path:
        """The folder that weighs what the store weighs."""
        return self.place

    @property
    def objects(self) -> Path:
        """The folder that holds the weights."""
        return self.kept

    def weight(self) -> int:
        """Bytes on the disk."""
        return nbytes(self.kept)

    def intact(self) -> bool | None:
        """What the tool's own check says; None for a tool that has none."""
        return None


class Ours(Store):
    """selectune's registry, from a model in memory."""

    settings = "a registry in a folder; extract, save, add; the base's folder is counted with it; restored by save_full (`selectune apply`)"
    names = "every move, with who, when and why, in a log chained by hash"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.registry = Registry.open(place / "registry", create=True)
        self.ids: list[str] = []
        self.base = place

    @classmethod
    def release(cls) -> str:
        return version("selectune")

    def commit(self, one: Version) -> None:
        self.base = one.base
        if one.trained is not None:
            self.ids.append(self.record(one, one.trained))

    def record(self, one: Version, trained: Trained) -> str:
        file = self.place / "one.delta"
        extract(trained.model, trained.before, trained.selection).save(file)
        update = Update(parent=self.ids[-1] if self.ids else None, skill=one.skill, actor="benchmark", meta={MODEL: str(one.base)})
        made = self.registry.add(update, file)
        file.unlink()
        return made

    def restore(self, number: int, out: Path) -> Path:
        return save_full(self.registry, self.ids[number - 1], out) / WEIGHTS

    @property
    def kept(self) -> Path:
        return self.place / "registry"

    def weight(self) -> int:
        return nbytes(self.base) + super().weight()

    def intact(self) -> bool | None:
        return self.registry.verify().ok


class Imported(Ours):
    """selectune's registry, from a checkpoint that somebody else trained."""

    settings = "the same, from the whole checkpoint: import_checkpoint (`selectune import`)"

    def record(self, one: Version, trained: Trained) -> str:
        base = self.ids[-1] if self.ids else str(one.base)
        return import_checkpoint(one.folder, base, self.registry, skill=one.skill, actor="benchmark").update


class Plain(Store):
    """A copy of the folder for each version."""

    settings = "shutil.copytree, not flushed"
    names = "nothing"

    def commit(self, one: Version) -> None:
        shutil.copytree(one.folder, self.place / f"v{one.number}")

    def restore(self, number: int, out: Path) -> Path:
        shutil.copytree(self.place / f"v{number}", out)
        return out / WEIGHTS


class MLflow(Store):
    """A run with the folder as artifacts, and a version of a registered model."""

    settings = (
        "tracking and registry in SQLite, artifacts in a folder; log_artifacts, create_model_version; download_artifacts with dst_path"
    )
    names = "an alias knows where it points now"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            del os.environ[name]
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        from mlflow import MlflowClient

        self.uri = f"sqlite:///{place / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.experiment = self.client.create_experiment("rivals", artifact_location=(place / "artifacts").as_uri())
        self.client.create_registered_model("rivals")
        self.runs: list[str] = []

    @classmethod
    def missing(cls) -> str | None:
        absent = [name for name in ("mlflow", "alembic") if find_spec(name) is None]
        return f"{' and '.join(absent)} not installed: pip install 'selectune[mlflow]'" if absent else None

    @classmethod
    def release(cls) -> str:
        return version("mlflow-skinny")

    def commit(self, one: Version) -> None:
        run = self.client.create_run(self.experiment, run_name=one.skill).info
        self.client.log_artifacts(run.run_id, str(one.folder), "model")
        self.client.set_terminated(run.run_id)
        self.client.create_model_version("rivals", source=f"{run.artifact_uri}/model", run_id=run.run_id)
        self.runs.append(f"{run.artifact_uri}/model")

    def restore(self, number: int, out: Path) -> Path:
        from mlflow.artifacts import download_artifacts

        out.mkdir()
        return Path(download_artifacts(artifact_uri=self.runs[number], dst_path=str(out), tracking_uri=self.uri)) / WEIGHTS


class Lfs(Store):
    """A git repository whose weights are Git LFS's."""

    settings = (
        "git init, git lfs track, git add, git commit and a tag for each version; git checkout TAG; .git is counted, the work tree not"
    )
    names = "commits have author, time and message; a tag or branch that was moved leaves no trace but a local reflog of 90 days"
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.tree = place / "tree"
        for folder in (self.tree, place / "home", place / "tmp"):
            folder.mkdir()
        self.call("git", "init", "--quiet")
        for key, value in (("user.name", "benchmark"), ("user.email", "benchmark@localhost"), ("gc.auto", "0")):
            self.call("git", "config", key, value)
        self.call("git", "lfs", "install", "--local")
        self.track()

    @classmethod
    def missing(cls) -> str | None:
        absent = [name for name in ("git", "git-lfs") if shutil.which(name) is None]
        return f"{' and '.join(absent)} not on the PATH" if absent else None

    @classmethod
    def release(cls) -> str:
        return subprocess.run(["git", "lfs", "version"], check=True, capture_output=True, text=True).stdout.split()[0]

    def track(self) -> None:
        self.call("git", "lfs", "track", WEIGHTS)

    def call(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Runs in the work tree, with a home of its own, so that nobody's settings are read or changed, and as many threads as it likes."""
        own = {"HOME": str(self.place / "home"), "TMPDIR": str(self.place / "tmp"), "GIT_CONFIG_NOSYSTEM": "1", **self.environment}
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | own
        done = subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()[-600:]}")
        return done

    def ready(self, one: Version) -> None:
        for path in one.folder.iterdir():
            shutil.copyfile(path, self.tree / path.name)

    def commit(self, one: Version) -> None:
        self.call("git", "add", ".")
        self.call("git", "commit", "--quiet", "--message", one.skill)
        self.call("git", "tag", f"v{one.number}")

    def restore(self, number: int, out: Path) -> Path:
        (self.tree / WEIGHTS).unlink(missing_ok=True)  # what is there already would not be written again
        self.call("git", "checkout", "--quiet", "--force", f"v{number}")
        return self.tree / WEIGHTS

    @property
    def kept(self) -> Path:
        return self.tree / ".git"

    @property
    def objects(self) -> Path:
        return self.kept / "lfs" / "objects"

    def intact(self) -> bool | None:
        return self.call("git", "lfs", "fsck", check=False).returncode == 0 and self.call("git", "fsck", check=False).returncode == 0


class Theta(Lfs):
    """git-theta, which keeps each tensor by itself."""

    settings = (
        "dense updates, its default, GIT_THETA_CHECKPOINT_TYPE=safetensors, the same numbers in fp32, since it refuses bf16; as Git LFS"
        " otherwise; in the last round alone"
    )
    slow = True
    environment: ClassVar[Mapping[str, str]] = {"GIT_THETA_CHECKPOINT_TYPE": "safetensors"}

    @classmethod
    def missing(cls) -> str | None:
        absent = [name for name in ("git", "git-lfs", "git-theta", "git-theta-filter") if shutil.which(name) is None]
        return f"{' and '.join(absent)} not on the PATH; how to install it: the beginning of rivals.py" if absent else None

    @classmethod
    def release(cls) -> str:
        # It does not say its version; its own interpreter knows, which the first line of its program names.
        program = Path(shutil.which("git-theta") or "")
        python = program.read_text("utf-8").splitlines()[0].removeprefix("#!").strip()
        asked = [python, "-c", "import importlib.metadata as found; print(found.version('git-theta'))"]
        return f"git-theta {subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()}"

    def track(self) -> None:
        self.call("git", "theta", "install")
        self.call("git", "theta", "track", WEIGHTS)

    def wanted(self, one: Version) -> Path:
        return one.folder.with_name(f"{one.folder.name}-fp32") / WEIGHTS

    def ready(self, one: Version) -> None:
        super().ready(one)
        shutil.copyfile(self.wanted(one), self.tree / WEIGHTS)

    def refusals(self) -> dict[str, str]:
        """The last line of what it says to a sparse update without a file of differences, and to a tensor in bf16; "" where it takes it."""
        small = torch.zeros(8, 8)
        save_file({"w": small}, self.tree / WEIGHTS)
        self.call("git", "add", ".")
        self.call("git", "commit", "--quiet", "--message", "base")
        said = {}
        small[0, 0] = 1
        for name, tensor, command in (
            ("sparse", small, ("git", "theta", "add", WEIGHTS, "--update-type", "sparse")),
            ("bf16", small.bfloat16(), ("git", "add", WEIGHTS)),
        ):
            save_file({"w": tensor}, self.tree / WEIGHTS)
            done = self.call(*command, check=False)
            lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if "Error: " in line]
            said[name] = (lines or ["refused"])[-1] if done.returncode else ""
        return said


STORES: dict[str, type[Store]] = {
    "selectune": Ours,
    "selectune import": Imported,
    "plain copy": Plain,
    "MLflow": MLflow,
    "Git LFS": Lfs,
    "git-theta": Theta,
}


def newest(store: Store, before: set[Path]) -> Path:
    """The largest file with weights that a store got since it had those: where its newest version lies."""
    new = {path for path in store.objects.rglob("*") if path.is_file()} - before
    return max(new, key=lambda path: path.stat().st_size)


def damage(path: Path) -> None:
    """Flips one bit in the middle of a file, as a disk may."""
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def settings() -> dict[str, Any]:
    """Of every store: what it is, how it is used, and what it knows; or why it is left out."""
    found: dict[str, Any] = {}
    for name, store in STORES.items():
        reason = store.missing()
        found[name] = {"skipped": reason} if reason else {"version": store.release(), "settings": store.settings, "names": store.names}
    return found
