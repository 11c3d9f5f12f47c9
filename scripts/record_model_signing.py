"""Record how selectune and OpenSSF's model-signing take each other's signatures: tests/recorded/model-signing.

python scripts/record_model_signing.py PROGRAM     PROGRAM is `model_signing`, from an environment of its own
                                                   (pip install model-signing pyopenssl)

Signs a tiny folder with theirs and with ours, checks each with the other, and keeps the folder, both signatures and the public key. The
private key is not kept: a recording is made whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selectune.governance import new_key, public_path, sign_folder, verify_folder

RECORDED = Path(__file__).parent.parent / "tests" / "recorded" / "model-signing"
FILES = {
    "config.json": b"{}\n",
    "model.safetensors": bytes(range(64)),
    "a/b.txt": b"sorted by parts\n",
    "a.txt": b"not by text\n",
    "ü.txt": b"",
}


def record(program: str) -> None:
    """Make the recording. Raises CalledProcessError where their tool refuses, and what `verify_folder` raises where ours does."""
    with tempfile.TemporaryDirectory() as place:
        folder, public = Path(place) / "folder", Path(place) / "signer.pub.pem"
        for name, data in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        key = new_key("signer", Path(place), "p256", passphrase=None)
        theirs = Path(place) / "theirs.sig"
        _run(program, "sign", "key", folder, "--private_key", Path(place) / "signer.pem", "--signature", theirs)
        signed = verify_folder(folder, theirs, key.public)
        ours = sign_folder(folder, key)
        said = _run(program, "verify", "key", folder, "--signature", ours, "--public_key", public_path(Path(place) / "signer.pem"))
        shutil.move(ours, Path(place) / "ours.sig")
        shutil.rmtree(RECORDED, ignore_errors=True)
        shutil.copytree(folder, RECORDED / "folder")
        for path in (theirs, Path(place) / "ours.sig", public):
            shutil.copy(path, RECORDED / path.name)
    about = {"model_signing": _run(program, "--version").split()[-1], "said of ours": said, "files": signed.files}
    (RECORDED / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout.strip() or done.stderr.strip()


if __name__ == "__main__":
    record(sys.argv[1])
