"""Feeds readers with a million inputs: ``python tests/fuzz/run.py --inputs 1000000``. Prints counts as JSON.

An input that makes a reader raise anything but selectune's own errors, or take more than two seconds, is written to ``tests/fuzz/found``.
The first input that leads to a message of a new shape is kept in the corpus, up to a bound.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from mutating import mutated  # noqa: E402  # found by the line above
from readers import Reader, readers  # noqa: E402

from selectune.errors import SelectuneError  # noqa: E402

SHARES = {"delta": 35, "header": 17, "events": 8, "documents": 28, "pack": 11, "recipe": 1}
KEPT_FILES, KEPT_BYTES = 50, 8192
"""The most files of one reader in the corpus, and the most bytes of one of them."""
SECONDS = 2.0


def outcome(reader: Reader, data: bytes) -> str:
    """ "read", or the shape of the error's message. Raises what is none of selectune's errors."""
    try:
        reader.read(data)
    except SelectuneError as error:
        return f"{type(error).__name__}: {re.sub(r'[0-9a-f]{6,}|[0-9]+|[^ -~]', '#', error.what)[:60]}"
    return "read"


def _fuzz(job: tuple[int, int]) -> Mapping[str, Any]:
    seed, inputs = job
    random, known = Random(seed), readers()
    pools = {
        name: [*reader.seeds, *(path.read_bytes() for path in sorted(HERE.glob(f"corpus/{name}-*")))] for name, reader in known.items()
    }
    shapes: dict[str, Counter[str]] = {name: Counter() for name in known}
    found, slowest, names = [], 0.0, random.choices(list(SHARES), list(SHARES.values()), k=inputs)
    for name in names:
        pool = pools[name]
        data = mutated(random.choice(pool if random.random() < 0.5 else known[name].seeds), random, pool)
        since = time.perf_counter()
        try:
            shape = outcome(known[name], data)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is what is looked for
            shape = f"!! {type(error).__name__}: {str(error)[:80]}"
            if shape not in shapes[name]:
                found.append([name, shape, traceback.format_exc(limit=-3), data.hex()])
        slowest = max(slowest, took := time.perf_counter() - since)
        if took > SECONDS:
            found.append([name, f"!! {took:.1f} s", "", data.hex()])
        if shape not in shapes[name] and not shape.startswith("!!") and len(data) <= KEPT_BYTES and len(pool) < 400:
            pool.append(data)
        shapes[name][shape] += 1
    corpus = {name: pool[len(known[name].seeds) :] for name, pool in pools.items()}
    return {"shapes": {name: dict(one) for name, one in shapes.items()}, "found": found, "slowest": slowest, "corpus": corpus}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="write what is new to the corpus")
    given = parser.parse_args()
    since = time.perf_counter()
    jobs = [(given.seed * 1000 + number, given.inputs // given.processes) for number in range(given.processes)]
    with get_context("spawn").Pool(given.processes) as pool:
        parts = pool.map(_fuzz, jobs)
    table = {}
    for name in SHARES:
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update(part["shapes"][name])
        wrong = sum(count for shape, count in counts.items() if shape.startswith("!!"))
        refused = sum(counts.values()) - counts["read"] - wrong
        shapes = len(counts) - ("read" in counts)
        table[name] = {"inputs": sum(counts.values()), "read": counts["read"], "refused": refused, "wrong": wrong, "messages": shapes}
    for number, (name, shape, trace, text) in enumerate(one for part in parts for one in part["found"]):
        (HERE / "found").mkdir(exist_ok=True)
        (HERE / "found" / f"{number:03d}-{name}.bin").write_bytes(bytes.fromhex(text))
        print(f"{name}: {shape}\n{trace}", file=sys.stderr)
    if given.keep:
        _keep(parts)
    seconds = round(time.perf_counter() - since)
    print(json.dumps({"seconds": seconds, "slowest": round(max(part["slowest"] for part in parts), 3), "readers": table}, indent=1))


def _keep(parts: list[Mapping[str, Any]]) -> None:
    known = readers()
    for name, reader in known.items():
        seen: set[str] = set()
        for data in (data for part in parts for data in part["corpus"][name]):
            shape = outcome(reader, data)
            if shape not in seen and len(seen) < KEPT_FILES:
                seen.add(shape)
                (HERE / "corpus" / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)


if __name__ == "__main__":
    main()
