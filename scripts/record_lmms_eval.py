"""What lmms-eval scores the cases of tests/scorer_cases.py as, and what it asks for the rows of tests/task_fixtures.py.

Both are written to tests/recorded/lmms_eval.json.

It needs an environment of its own, as lmms-eval asks for many packages:

    python -m venv /tmp/lmms-eval && /tmp/lmms-eval/bin/pip install lmms-eval==0.7.3
    /tmp/lmms-eval/bin/python scripts/record_lmms_eval.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from lmms_eval.api.metrics import anls, exact_match_hf_evaluate  # noqa: E402
from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter  # noqa: E402
from lmms_eval.tasks.chartqa.utils import relaxed_correctness  # noqa: E402
from lmms_eval.tasks.mmstar.utils import exact_match as mmstar_match  # noqa: E402
from lmms_eval.tasks.pixmo_count.utils import pixmo_count_process_results  # noqa: E402
from lmms_eval.tasks.realworldqa.utils import realworldqa_process_results  # noqa: E402
from lmms_eval.tasks.scienceqa.utils import sqa_process_results  # noqa: E402
from lmms_eval.tasks.seedbench.utils import seed_aggregation_result, seed_process_result  # noqa: E402
from lmms_eval.tasks.textvqa.utils import textvqa_process_results  # noqa: E402

from scorer_cases import CASES, Case  # noqa: E402
from task_fixtures import SMALL  # noqa: E402

RECORD = ROOT / "tests" / "recorded" / "lmms_eval.json"


def _ai2d(case: Case) -> float:
    kept = MultiChoiceRegexFilter(r"([A-Z])\.").apply([[case.output]], [{}])
    found = exact_match_hf_evaluate([kept[0]], [case.answers[0]], ignore_case=True, ignore_punctuation=True)
    return float(found["exact_match"])


def _scienceqa(case: Case) -> float:
    doc = {"choices": case.choices, "answer": ord(case.answers[0]) - ord("A")}
    return float(sqa_process_results(doc, [case.output])["exact_match"])


def _seedbench(case: Case) -> float:
    found = seed_process_result({"answer": case.answers[0], "data_type": "image", "question_id": "1"}, [case.output])
    return float(seed_aggregation_result([found["seed_image"]]))


SCORED: dict[str, Callable[[Case], float]] = {
    "relaxed": lambda case: float(relaxed_correctness(case.output, case.answers[0])),
    "anls": lambda case: float(anls(list(case.answers), [case.output])["anls"]),
    "textvqa": lambda case: float(textvqa_process_results({"answers": list(case.answers), "question_id": 1}, [case.output])["exact_match"]),
    "ai2d": _ai2d,
    "scienceqa": _scienceqa,
    "seedbench": _seedbench,
    "mmstar": lambda case: float(mmstar_match(case.output, case.answers[0])),
    "pixmo_count": lambda case: float(pixmo_count_process_results({"answer": case.answers[0]}, [case.output])["acc"]),
    "realworldqa": lambda case: float(realworldqa_process_results({"answer": case.answers[0]}, [case.output])["exact_match"]),
}


PROMPTED = {
    "textvqa": ("textvqa", "_default_template_textvqa_yaml", "textvqa_doc_to_text"),
    "ai2d": ("ai2d", "ai2d.yaml", "ai2d_doc_to_text"),
    "chartqa": ("chartqa", "chartqa.yaml", "chartqa_doc_to_text"),
    "docvqa": ("docvqa", "_default_template_docvqa_yaml", "docvqa_doc_to_text"),
    "infovqa": ("infovqa", "_default_template_infovqa_yaml", "infovqa_doc_to_text"),
    "realworldqa": ("realworldqa", "realworldqa.yaml", "realworldqa_doc_to_text"),
    "seedbench": ("seedbench", "seedbench.yaml", "seed_doc_to_text"),
    "scienceqa-img": ("scienceqa", "scienceqa_img.yaml", "sqa_doc_to_text"),
    "mmstar": ("mmstar", "_default_template_yaml", "mmstar_doc_to_text"),
}
"""Our task: lmms-eval's folder, the file with the words around its questions, and its function that makes a prompt."""


class _Loader(yaml.SafeLoader):
    """YAML whose functions stay names."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def _prompts(name: str) -> list[str]:
    folder, file, function = PROMPTED[name]
    module = import_module(f"lmms_eval.tasks.{folder}.utils")
    settings = yaml.load((Path(str(module.__file__)).parent / file).read_text(encoding="utf-8"), Loader=_Loader)
    around: dict[str, Any] = settings.get("lmms_eval_specific_kwargs", {}).get("default", {})
    ask = getattr(module, function)
    return [ask(dict(row), around) if around else ask(dict(row)) for row in SMALL[name].rows if row.get("data_type") != "video"]


def main() -> None:
    """Score every case, make every prompt, and write the record."""
    try:
        release = version("lmms-eval")
    except PackageNotFoundError:
        raise SystemExit("lmms-eval is not installed in this environment") from None
    rows = [{"metric": case.metric, "output": case.output, "answers": case.answers, "score": SCORED[case.metric](case)} for case in CASES]
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(
        json.dumps(
            {"lmms-eval": release, "prompts": {name: _prompts(name) for name in PROMPTED}, "scores": rows}, ensure_ascii=False, indent=1
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
