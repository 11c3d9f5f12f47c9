"""Identity: canonical JSON, digests, strict JSON, manifests."""

from __future__ import annotations

import doctest
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import save_file

from delta_fixtures import tied
from selectune import hashing
from selectune.errors import InputError, ModelError
from selectune.hashing import (
    DTYPES,
    SHARED,
    Entry,
    Manifest,
    canonical,
    digest,
    dtype_name,
    file_digest,
    manifest,
    parse_json,
    tensor_digest,
)
from selectune.untrusted import read_header

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_the_examples_in_the_documentation_are_true() -> None:
    assert doctest.testmod(hashing).failed == 0


@given(JSON)
def test_canonical_json_reads_back_to_the_same_value_and_text(value: object) -> None:
    text = canonical(value)
    assert parse_json(text) == value
    assert canonical(parse_json(text)) == text


def test_the_order_of_keys_does_not_matter_and_the_kind_does() -> None:
    assert digest("a", {"x": 1, "y": [2.5]}) == digest("a", {"y": [2.5], "x": 1})
    assert digest("a", {"x": 1}) != digest("b", {"x": 1})


def test_a_digest_is_the_sha256_of_a_tag_and_the_canonical_text() -> None:
    assert digest("model", [1, "é"]) == hashlib.sha256(b'selectune/model\0[1,"\xc3\xa9"]').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, {1: 2}, "\ud800", {"x": object()}])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="no canonical JSON"):
        canonical(value)


def test_json_of_a_stranger_may_be_nested_sixty_four_levels_deep() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64) is not None
    assert parse_json(b"[" * 63 + b"1" + b"]" * 63) is not None
    assert parse_json(b'["' + b"[" * 99 + b'"]') == ["[" * 99], "brackets in words are none"
    for text in (b"[" * 64 + b"1" + b"]" * 64, b'{"a":' * 64 + b"1" + b"}" * 64):
        with pytest.raises(InputError, match="nested deeper than 64"):
            parse_json(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a":1,"a":2}', "appears twice"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[1e999]", "not a finite number"),
        (b"[" * 100 + b"]" * 100, "nested deeper than 64"),
        (b"[" * 200_000, "nested too deeply|not strict JSON"),
        (b"1" * 5000, "not strict JSON"),
        (b'"\xff"', "not strict JSON"),
        (b"[1,]", "not strict JSON"),
        (b"[" + b" " * 70 + b"]", "over the limit of 64"),
    ],
)
def test_json_of_a_stranger_is_refused_where_python_is_lenient(text: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_json(text, limit=64 if text.endswith(b" ]") else 1 << 20)


def test_nesting_up_to_the_limit_is_read() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64) is not None


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_is_hashed_by_the_bytes_that_safetensors_would_store(name: str, tmp_path: Path) -> None:
    raw = torch.randint(0, 2 if name == "BOOL" else 256, (48,), dtype=torch.uint8)
    tensor = raw.view(getattr(torch, DTYPES[name][0])).reshape(2, -1)
    assert dtype_name(tensor.dtype) == name
    assert tensor.element_size() == DTYPES[name][1]
    assert tensor_digest(tensor) == hashlib.sha256(raw.numpy().tobytes()).hexdigest()
    assert tensor_digest(tensor.T) == tensor_digest(tensor.T.contiguous())
    if name in {"F32", "F64", "I64", "F16"}:
        save_file({"x": tensor}, tmp_path / "x.safetensors")
        assert load_numpy(tmp_path / "x.safetensors")["x"].tobytes() == raw.numpy().tobytes()


def test_scalars_and_empty_tensors_have_digests() -> None:
    assert tensor_digest(torch.tensor(1.0)) == hashlib.sha256(np.float32(1).tobytes()).hexdigest()
    assert tensor_digest(torch.zeros(0, 3)) == hashlib.sha256(b"").hexdigest()


def test_a_tensor_without_data_and_a_dtype_without_name_are_refused() -> None:
    with pytest.raises(ModelError, match="meta device has no bytes"):
        tensor_digest(torch.zeros(2, device="meta"))
    with pytest.raises(ModelError, match=r"torch\.complex128 has no name"):
        dtype_name(torch.complex128)


def test_a_file_is_hashed_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_a_manifest_has_parameters_and_persistent_buffers_and_a_tied_tensor_once() -> None:
    assert list(manifest(tied())) == ["embed.weight", "o.weight", "q.bias", "q.weight", "seen"]


def test_a_models_id_is_the_digest_of_its_sorted_tensors_and_sees_one_bit() -> None:
    net = tied()
    before = manifest(net)
    assert before.id == digest("model", [[n, e.dtype, list(e.shape), e.sha256] for n, e in sorted(before.items())])
    assert manifest(tied()).id == before.id
    net.q.bias.detach().view(torch.int32)[3] ^= 1
    assert manifest(net).id != before.id
    assert [name for name in before if before[name] != manifest(net)[name]] == ["q.bias"]


def test_replace_gives_the_id_of_hashing_anew_and_never_adds_a_tensor() -> None:
    net = tied()
    before = manifest(net)
    net.seen.add_(1)
    after = manifest(net)
    assert before.replace({"seen": after["seen"]}).id == after.id
    with pytest.raises(KeyError, match="unseen"):
        before.replace({"unseen": Entry(dtype="F32", shape=(), sha256="0" * 64)})
    assert Manifest.from_list(json.loads(canonical(after.to_list()))) == after


def test_importing_hashing_does_not_import_torch() -> None:
    code = "import sys, selectune.hashing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dtypes_of_which_several_numbers_share_a_byte_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"float4_e2m1fn_x2 has no name in safetensors, or several of its numbers share a byte"):
        dtype_name(torch.float4_e2m1fn_x2)
    assert not set(SHARED) & set(DTYPES)
    for dtype, length in zip(SHARED, (8, 12, 12), strict=True):
        header = json.dumps({"w": {"dtype": dtype, "shape": [16], "data_offsets": [0, length]}}).encode()
        path = tmp_path / f"{dtype}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(length))
        with pytest.raises(InputError, match=rf"w is of dtype {dtype}, of which several numbers share a byte"):
            read_header(path)
