"""What a step costs with length, batch and the layers selected; and the plot of it.

    python benchmarks/sweep.py            # minutes; writes results/sweep.json and docs/why/speed.svg
    python benchmarks/sweep.py --plot     # the plot alone, from the JSON

Ours, on the embedded model's attention, from the second epoch on: one setting changes and the others stay. Settings take turns; a figure is
the median over the steps of all rounds. The plot is made of the report's own charts.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from arms import Race, first, only, ours
from surroundings import machine
from train import TRAINERS, need, prepare

from selectune.models import Model
from selectune.records import Encoder, Message, Record, Records
from selectune.reporting.charts import Panel, Point, Series, panel, value_axis
from selectune.training.machine import matrix_rate

RESULTS = Path(__file__).parent / "results" / "sweep.json"
PLOT = Path(__file__).parents[1] / "docs" / "why" / "speed.svg"
FONT = 'font-family="sans-serif" font-size="12"'
STYLE = """<style>
text { fill: #444 } line { stroke: #ccc } polyline { fill: none; stroke: #2563eb; stroke-width: 2 } circle { fill: #2563eb }
@media (prefers-color-scheme: dark) { text { fill: #ccc } line { stroke: #555 } }
</style>"""
LENGTHS, BATCHES, LAYERS = (32, 64, 128, 256), (4, 8, 16, 32, 64), (2, 8, 15, 22, 30)
SIDES = {"length": "tokens a sample, 8 samples", "batch": "samples a step, 31 tokens each", "layers": "upper layers selected, 32 samples"}


def settings(model: Model, options: argparse.Namespace) -> dict[str, dict[int, Race]]:
    """A race for each setting, by the side that changes."""
    every = int(model.net.config.get_text_config().num_hidden_layers)
    attention = ("attention",)
    lengths = {size: _race(model, _words(model, size, 8 * options.steps), attention, 8, options) for size in options.lengths}
    batches = {size: _race(model, _data(options, size), attention, size, options) for size in options.batches}
    counts = sorted({min(count, every) for count in options.layers})
    layers = {
        count: _race(model, _data(options, options.rows), (f"language.layers[{every - count}:].attn.{{q,k,v,o}}",), options.rows, options)
        for count in counts
    }
    return {"length": lengths, "batch": batches, "layers": layers}


def _data(options: argparse.Namespace, batch: int) -> Records:
    return prepare(options.model, argparse.Namespace(model=options.model, data="embedded:digits", batch=batch, steps=options.steps))[1]


def _words(model: Model, length: int, count: int) -> Records:
    """Text of about so many tokens, with a short answer."""
    encoder, words = Encoder(model.processor), "cat dog fish "

    def made(number: int, size: int) -> Record:
        parts = ((words * size)[: 4 * size],), ("a red fish",)
        return Record(id=f"{size}-{number}", messages=(Message(role="user", parts=parts[0]), Message(role="assistant", parts=parts[1])))

    size = max(1, length // 2)
    while len(encoder.encode(made(0, size + 1)).input_ids) <= length:
        size += 1
    return Records(items=tuple(made(number, size) for number in range(count)), name=f"{length} tokens")


def _race(model: Model, records: Records, patterns: tuple[str, ...], batch: int, options: argparse.Namespace) -> Race:
    encoder = Encoder(model.processor)
    samples = [{"sample": encoder.encode(record)} for record in records]
    selection = model.map.select(patterns)
    return Race(model=model, selection=selection, records=records, samples=samples, batch=batch, steps=options.steps, encoder=encoder)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    model = prepare(options.model, argparse.Namespace(model=options.model, data="embedded:digits", batch=1, steps=1))[0]
    races = settings(model, options)
    seconds: dict[str, dict[int, list[float]]] = {side: {value: [] for value in found} for side, found in races.items()}
    squares = []
    for turn in range(options.rounds):
        squares.append(matrix_rate(model.net.dtype, times=5))
        for side, found in races.items():
            for value, one in found.items():
                with only(model, one.selection):
                    if not turn:
                        first(one)
                    seconds[side][value] += [span[0] for span in ours(one)]
                print(
                    f"round {turn + 1}: {side} {value}: {statistics.median(seconds[side][value]):.3f} s a step", file=sys.stderr, flush=True
                )
    square = statistics.median(squares)
    rows = {
        side: [_row(value, one, statistics.median(seconds[side][value]), square) for value, one in found.items()]
        for side, found in races.items()
    }
    return {"machine": machine(*TRAINERS), "model": options.model, "rounds": options.rounds, "square_product_per_s": square, **rows}


def _row(value: int, one: Race, seconds: float, square: float) -> dict[str, float]:
    work = need(one, begins="cut").work
    return {
        "value": value,
        "samples_per_s": one.batch / seconds,
        "seconds_per_step": seconds,
        "gemm_share": work.total / seconds / square,
        "attention_share": work.attention / work.total,
    }


def plot(result: dict[str, Any]) -> str:
    """A row of charts for each side: samples a second, and the share of the matrix rate."""
    panels = []
    for side, title in SIDES.items():
        rows = result[side]
        for key, label in (("samples_per_s", "samples a second"), ("gemm_share", "of the matrix rate, %")):
            factor = 100.0 if key == "gemm_share" else 1.0
            points = tuple(Point(x=row["value"], y=factor * row[key], title=f"{row['value']}: {factor * row[key]:.3g}") for row in rows)
            across = value_axis(title, [point.x for point in points], zero=True)
            upwards = value_axis(label, [point.y for point in points], zero=True)
            panels.append(panel(label, [Series(name=side, style=0, points=points)], across, upwards, size=(400.0, 220.0)))
    return _drawn(panels)


def _drawn(panels: Sequence[Panel]) -> str:
    width, height = panels[0].width, panels[0].height
    rows = (len(panels) + 1) // 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width:g} {rows * (height + 20):g}" {FONT}>',
        "<title>What a step costs</title>",
        STYLE,
    ]
    for number, one in enumerate(panels):
        lines.append(f'<g transform="translate({number % 2 * width:g} {number // 2 * (height + 20) + 20:g})">')
        lines.append(f'<text x="{one.left:g}" y="0" font-weight="bold">{html.escape(one.title)}</text>')
        for at, label in one.y_ticks:
            lines.append(f'<line x1="{one.left:g}" x2="{one.right:g}" y1="{at:g}" y2="{at:g}"/>')
            lines.append(f'<text x="{one.left - 8:g}" y="{at + 4:g}" text-anchor="end">{html.escape(label)}</text>')
        lines += [f'<text x="{at:g}" y="{one.bottom + 18:g}" text-anchor="middle">{html.escape(label)}</text>' for at, label in one.x_ticks]
        middle = (one.left + one.right) / 2
        lines.append(f'<text x="{middle:g}" y="{one.height - 6:g}" text-anchor="middle">{html.escape(one.x_title)}</text>')
        for track in one.tracks:
            lines.append(f'<polyline points="{track.path}"/>')
            lines += [
                f'<circle cx="{mark.x:g}" cy="{mark.y:g}" r="4"><title>{html.escape(mark.title)}</title></circle>' for mark in track.marks
            ]
        lines.append("</g>")
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, or tiny")
    parser.add_argument("--steps", type=int, default=2, help="counted steps of a setting in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--rows", type=int, default=32, help="samples a step where layers change")
    parser.add_argument("--plot", action="store_true", help="draw what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--svg", type=Path, default=PLOT, help="where the plot goes")
    options = parser.parse_args(given)
    if options.plot:
        result: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        result = measure(options)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    options.svg.write_text(plot(result), encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
