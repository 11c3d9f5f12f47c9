"""Fuzzes one reader guided by which lines its inputs reach: ``python tests/fuzz/guided.py READER [--seconds 120]``.

Needs atheris (``pip install atheris``), which no other test does. Half of the inputs are changed as `mutating` changes them, the others as
libFuzzer does. An input that makes the reader raise anything but selectune's own errors is written to ``tests/fuzz/found``, and so is one
that takes longer than ten seconds or more than 2 GB; then the run ends. Prints libFuzzer's own lines: `cov` counts the branches reached.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

with atheris.instrument_imports(include=["selectune"]):
    from mutating import mutated
    from readers import readers
    from run import SHARES, outcome

LONGEST = 1 << 16
"""Bytes of the longest input."""


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=SHARES)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    reader = readers()[given.reader]
    pool = [*reader.seeds, *(path.read_bytes() for path in sorted(HERE.glob(f"corpus/{given.reader}-*")))]

    def change(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        return bytes(mutated(data, random, pool)[:most] if random.random() < 0.5 else atheris.Mutate(data, most))

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(pool):
            (Path(folder) / f"{number:04d}").write_bytes(data)
        (HERE / "found").mkdir(exist_ok=True)
        limits = [f"-max_total_time={given.seconds}", f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=2048", f"-seed={given.seed}"]
        atheris.Setup(
            [sys.argv[0], *limits, f"-artifact_prefix={HERE / 'found'}/", folder], lambda data: outcome(reader, data), custom_mutator=change
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
