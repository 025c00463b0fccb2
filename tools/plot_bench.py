#!/usr/bin/env python3
"""Draws time against context, dense and sparse, from the JSON Lines of `lserve bench`.

    tools/plot_bench.py RESULTS.jsonl... --svg OUT.svg     # the plot, and a Markdown table on stdout
    ... --processor    # processor time / threads: what the clock would have shown, had nobody else run

Several files are read as one run; of two tests of the same name the later one holds. Needs nothing
but Python's standard library. `--self-test` checks the drawing against numbers made up for it.
"""
import argparse
import json
import math
import pathlib
import statistics
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

COLOURS = {"dense": "#b5402f", "sparse": "#23689b", "auto": "#4d8a3d"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 430, 330, 62, 34, 44
PANEL = 490  # from one panel's left edge to the next one's


def read_results(paths):
    """(machine, {arm: {context: test}} of prefill, the same of decode); batches of one only."""
    machine, prefill, decode = None, {}, {}
    for path in paths:
        for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
            try:
                test = json.loads(line)
            except json.JSONDecodeError as error:
                sys.exit(f"{path}:{number}: no JSON ({error}); expected lines of `lserve bench --json`")
            if test["kind"] == "machine":
                machine = machine or test
            elif test["kind"] == "prefill":
                prefill.setdefault(test["attention"], {})[test["context"]] = test
            elif test["kind"] == "decode" and test["batch"] == 1 and test["context"] > 0:
                decode.setdefault(test["attention"], {})[test["context"]] = test
    if machine is None or not (prefill or decode):
        sys.exit(f"{', '.join(map(str, paths))}: no machine line or no test in it; "
                 "expected what `lserve bench MODEL --json FILE` writes")
    return machine, prefill, decode


def clock_time(test, _threads):
    """Seconds of a run, median."""
    return statistics.median(test["seconds"])


def processor_time(test, threads):
    """The same from the processor time of the process, spread over its threads."""
    return statistics.median(s * c for s, c in zip(test["seconds"], test["cores"])) / threads


def values_of(time, threads):
    """How prefill (seconds) and decode (milliseconds per token) are read from a test."""
    return (lambda test: time(test, threads),
            lambda test: time(test, threads) / test["decode_tokens"] * 1e3)


def series(tests, value):
    return {arm: [(context, value(by_context[context])) for context in sorted(by_context)]
            for arm, by_context in sorted(tests.items())}


def short_count(count):
    return f"{count // 1024}K" if count % 1024 == 0 else str(count)


def short_number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


class LogAxis:
    """Maps values to pixels; the range is widened to whole ticks."""

    def __init__(self, values, base, first_pixel, last_pixel):
        self.low = math.floor(math.log(min(values), base) + 1e-9)
        self.high = max(math.ceil(math.log(max(values), base) - 1e-9), self.low + 1)
        self.base, self.first, self.last = base, first_pixel, last_pixel

    def pixel(self, value):
        share = (math.log(value, self.base) - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def ticks(self):
        return [self.base**power for power in range(self.low, self.high + 1)]


def panel(left, title, unit, data):
    """SVG elements of one diagram; nothing if there are no data."""
    points = [point for line in data.values() for point in line]
    if not points:
        return []
    right, bottom = left + WIDTH - LEFT, TOP + HEIGHT - BOTTOM - TOP
    x_axis = LogAxis([x for x, _ in points], 2, left, right)
    y_axis = LogAxis([y for _, y in points], 10, bottom, TOP)
    out = [f'<text x="{left}" y="{TOP - 14}" class="title">{title}</text>']
    for tick in x_axis.ticks():
        x = x_axis.pixel(tick)
        out.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" class="grid"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short_count(tick)}</text>')
    for tick in y_axis.ticks():
        y = y_axis.pixel(tick)
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" class="grid"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(tick)}</text>')
    out.append(f'<text x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle">'
               "tokens of context</text>")
    out.append(f'<text x="{left - 46}" y="{(TOP + bottom) / 2}" text-anchor="middle" '
               f'transform="rotate(-90 {left - 46} {(TOP + bottom) / 2})">{unit}</text>')
    for arm, line in data.items():
        colour = COLOURS.get(arm, "#555555")
        places = [(x_axis.pixel(x), y_axis.pixel(y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[-1]
        out.append(f'<text x="{x - 6:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="{colour}">'
                   f"{arm} {short_number(line[-1][1])}</text>")
    return out


def draw(machine, prefill, decode, time=clock_time):
    prefill_seconds, decode_ms = values_of(time, machine["threads"])
    what = "" if time is clock_time else "processor time / threads: "
    model = machine.get("model", {}).get("name", "?")
    note = f', {machine["note"]}' if machine["note"] else ""
    caption = (f'{model}: {machine["processor"]}, {machine["threads"]} threads, {machine["isa"]}{note}')
    elements = panel(LEFT, "prefill", f"{what}seconds", series(prefill, prefill_seconds))
    elements += panel(LEFT + PANEL, "decode", f"{what}milliseconds per token", series(decode, decode_ms))
    total_width, total_height = LEFT + PANEL + WIDTH - LEFT + 20, HEIGHT + 22
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" '
        f'width="{total_width}" height="{total_height}">',
        "<style>text{font:12px sans-serif;fill:#333} .title{font-weight:bold} "
        ".grid{stroke:#ddd;stroke-width:1}</style>",
        f'<rect width="{total_width}" height="{total_height}" fill="white"/>',
        *elements,
        f'<text x="{LEFT}" y="{total_height - 8}">{caption}</text>',
        "</svg>", ""])


def table(machine, prefill, decode, time=clock_time):
    """A Markdown table, one row per context; cores: what the least lucky run had on average."""
    prefill_seconds, decode_ms = values_of(time, machine["threads"])
    arms = sorted({*prefill, *decode})
    head = ["context"]
    head += [f"prefill {arm}" for arm in arms] + [f"decode {arm}" for arm in arms] + ["cores"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for context in sorted({c for tests in (prefill, decode) for arm in tests.values() for c in arm}):
        cells, cores = [short_count(context)], []
        for tests, value, unit in ((prefill, prefill_seconds, "s"), (decode, decode_ms, "ms")):
            for arm in arms:
                test = tests.get(arm, {}).get(context)
                cells.append(f"{short_number(value(test))} {unit}" if test else "-")
                cores += test["cores"] if test else []
        cells.append(f"{min(cores):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def self_test():
    def test(kind, arm, context, value):
        return {"kind": kind, "attention": arm, "context": context, "batch": 1,
                "decode_tokens": 4, "seconds": [value, value, 9 * value], "cores": [1.5, 1.75, 2]}

    machine = {"kind": "machine", "note": "a note", "processor": "P", "threads": 2, "isa": "i",
               "ceilings": {"bf16_flop_s": None, "f32_flop_s": 2e9}, "model": {"name": "m"}}
    rows = [machine]
    for context in (1024, 2048, 4096):
        rows.append(test("prefill", "dense", context, (context / 1024) ** 2))
        rows.append(test("prefill", "sparse", context, context / 1024))
    rows.append(test("decode", "dense", 1024, 0.02))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        results = read_results([path])
    root = ElementTree.fromstring(draw(*results))  # well-formed
    lines = [[tuple(map(float, p.split(","))) for p in e.get("points").split()]
             for e in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 3, lines
    dense, sparse = lines[0], lines[1]
    assert len(dense) == len(sparse) == 3 and dense[0] == sparse[0]
    # On log axes a power of x is a straight line, and the square is twice as steep.
    rise = [dense[i][1] - dense[i + 1][1] for i in range(2)]
    assert abs(rise[0] - rise[1]) < 0.2, dense
    assert abs(rise[0] - 2 * (sparse[0][1] - sparse[1][1])) < 0.3, (dense, sparse)
    # 1 second is the lowest tick of the prefill diagram, 1024 tokens its left edge.
    assert dense[0] == (LEFT, HEIGHT - BOTTOM), dense
    text = table(*results).splitlines()
    assert text[2] == "| 1K | 1 s | 1 s | 5 ms | - | 1.50 |", text[2]
    assert text[4] == "| 4K | 16 s | 4 s | - | - | 1.50 |", text[4]
    # 1.5, 1.75 and 18 processor seconds on 2 threads.
    text = table(*results, processor_time).splitlines()
    assert text[2].startswith("| 1K | 0.875 s | 0.875 s |"), text[2]
    print("plot_bench: self test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", help="JSON Lines of `lserve bench --json FILE`")
    parser.add_argument("--svg", help="where the plot goes; without it only the table is printed")
    parser.add_argument("--processor", action="store_true",
                        help="processor time / threads instead of the clock, for a busy machine")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    if not arguments.results:
        parser.error("no results given, expected a file of `lserve bench --json FILE`")
    results = read_results(arguments.results)
    time = processor_time if arguments.processor else clock_time
    if arguments.svg:
        pathlib.Path(arguments.svg).write_text(draw(*results, time))
    print(table(*results, time))
    return None


if __name__ == "__main__":
    main()
