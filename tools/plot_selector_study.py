#!/usr/bin/env python3
"""Tables and curves of the selector study, from the JSON Lines of bench/selector_study.

    tools/plot_selector_study.py RESULTS.jsonl --svg docs/studies/selector.svg > tables.md

Needs nothing but Python's standard library. `--self-test` checks the sums against numbers made up
for it.
"""
import argparse
import collections
import json
import math
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

PRODUCT = {"score": "bound", "logical": 16, "grouping": "softmax_mean", "eager_steps": 0, "least_cosine": -1}
COLOURS = ["#23689b", "#4d8a3d", "#b5402f", "#8a5fa8", "#c28a1e", "#555555"]
TASKS = {"needle": "facts", "text": "texts", "random": "random weights"}


class Sum:
    """What several runs of one strategy came to."""

    def __init__(self):
        self.answers = self.right = self.positions = self.same = self.due = self.made = 0
        self.kl = self.recall = 0.0
        self.recalls = self.runs = 0

    def add(self, record):
        self.runs += 1
        self.answers += record["answers"]
        self.right += record["right"]
        self.positions += record["positions"]
        self.same += record["same_top"]
        self.kl += record["kl"] * record["positions"]
        self.due += record["lists_due"]
        self.made += record["lists_made"]
        if record["recall"] is not None:
            self.recall += record["recall"]
            self.recalls += 1

    def cell(self):
        """Answers, or agreement, then KL."""
        kl = f"{self.kl / self.positions:.4f}"
        if self.answers:
            return f"{self.right}/{self.answers} {kl}"
        recall = f" {100 * self.recall / self.recalls:.0f}%" if self.recalls else ""
        return f"{100 * self.same / self.positions:.1f} {kl}{recall}"


def read(paths):
    records = []
    for path in paths:
        for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                sys.exit(f"{path}:{number}: no JSON ({error}); expected lines of selector_study")
    return records


def key_of(strategy):
    return tuple(sorted(strategy.items()))


def sums(records, **where):
    """{strategy: Sum} over the records that have these members, the product's own op left out."""
    found = collections.defaultdict(Sum)
    for record in records:
        if record["is_product"] or any(record[name] != value for name, value in where.items()):
            continue
        found[key_of(record["strategy"])].add(record)
    return found


def lookup(found, **strategy):
    return found.get(key_of({**PRODUCT, **strategy}))


def table(header, rows):
    out = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    out += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(out) + "\n"


def cell(found, **strategy):
    hit = lookup(found, **strategy)
    return hit.cell() if hit else "-"


def groups(records):
    """(name, {strategy: Sum}) of everything that is shown apart."""
    for task in TASKS:
        for heads in ["half", "none"] if task != "random" else [None]:
            where = {"task": task} if heads is None else {"task": task, "heads": heads}
            found = sums(records, **where)
            if not found:
                continue
            runs = sorted({(r["length"], r["source"], r["heads"]) for r in records
                           if all(r[n] == v for n, v in where.items())})
            what = {"half": ", half of the heads stream", "none": ", no head streams", None: ""}[heads]
            yield f"{TASKS[task]}{what}", runs, found


def tables(records):
    text = []
    budgets = [256, 512, 1024, 2048, 4096, 8192]
    for name, runs, found in groups(records):
        text.append(f"### {name[0].upper() + name[1:]}\n")
        text.append("Runs: " + "; ".join(f"{length // 1024}K {source}" + (f" {heads}" if heads not in ("half", "none") else "")
                                          for length, source, heads in runs) + ".\n")
        text.append("Interval by budget:\n")
        text.append(table(["interval"] + [str(b) for b in budgets],
                          [[str(i)] + [cell(found, budget=b, interval=i) for b in budgets]
                           for i in (1, 2, 4, 8, 16)]))
        text.append("Scores, logical pages and groupings, at budgets of 512, 1024 and 2048 tokens, interval 1 and 4:\n")
        columns = [(i, b) for i in (1, 4) for b in (512, 1024, 2048)]
        variants = [("bound, 16, softmax_mean (the product)", {})]
        variants += [(s, {"score": s}) for s in ("box_75", "box_50", "box_25", "middle", "mean", "mean_abs", "mean_root", "gaussian", "true_max", "true_mass")]
        variants += [(f"{s}, logical page {n}", {"score": s, "logical": n}) for n in (32, 64) for s in ("bound", "mean_abs")]
        variants += [(f"bound, {g}", {"grouping": g}) for g in ("softmax_max", "raw_mean", "raw_max", "turns")]
        text.append(table(["selector"] + [f"{i}: {b}" for i, b in columns],
                          [[label] + [cell(found, budget=b, interval=i, **v) for i, b in columns]
                           for label, v in variants]))
        text.append("When a list is made anew (share of lists made in brackets):\n")
        rows = []
        adaptive = [("every step", {"interval": 1}), ("every 2nd", {"interval": 2}), ("every 4th", {"interval": 4})]
        adaptive += [(f"cosine below {c}, 16 at most", {"interval": 16, "least_cosine": c}) for c in (0.8, 0.6, 0.4, 0.2)]
        adaptive += [("first 4 steps, then every 4th", {"interval": 4, "eager_steps": 4}),
                     ("first 4 steps, then every 16th", {"interval": 16, "eager_steps": 4})]
        for label, v in adaptive:
            row = [label]
            for b in (512, 1024, 2048):
                hit = lookup(found, budget=b, **v)
                row.append(f"{hit.cell()} [{100 * hit.made / hit.due:.0f}%]" if hit else "-")
            rows.append(row)
        text.append(table(["rule", "512", "1024", "2048"], rows))
    return "\n".join(text)


def draw(records):
    """KL against budget: one panel per group, one curve per interval, and mean_abs beside it."""
    width, height, left, top = 330, 230, 52, 40
    panels = list(groups(records))
    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", width=str(width * len(panels) + 20),
                              height=str(height + 110), viewBox=f"0 0 {width * len(panels) + 20} {height + 110}")
    ElementTree.SubElement(svg, "rect", width="100%", height="100%", fill="white")

    def put(text, x, y, size=11, anchor="start", fill="#222"):
        node = ElementTree.SubElement(svg, "text", {"x": f"{x:.0f}", "y": f"{y:.0f}", "font-size": str(size),
                                                    "font-family": "sans-serif", "text-anchor": anchor, "fill": fill})
        node.text = text

    budgets = [256, 512, 1024, 2048, 4096, 8192]
    curves = [(f"bound, interval {i}", {"interval": i}) for i in (1, 4, 16)]
    curves += [("mean + deviation, interval 1", {"interval": 1, "score": "mean_abs"}),
               ("mean + deviation, interval 4", {"interval": 4, "score": "mean_abs"}),
               ("oracle (true mass), interval 4", {"interval": 4, "score": "true_mass"})]
    low, high = -5, 1  # powers of ten
    put("Selectors: KL(every page || selected pages), nats per decoded token", left, 20, 14)
    for column, (name, _, found) in enumerate(panels):
        x0 = left + column * width

        def place(budget, kl):
            x = x0 + budgets.index(budget) * (width - 90) / (len(budgets) - 1)
            y = top + (high - math.log10(max(kl, 10 ** low))) / (high - low) * height
            return x, y

        put(name, x0, top - 6, 11)
        for power in range(low, high + 1):
            y = place(256, 10.0 ** power)[1]
            ElementTree.SubElement(svg, "line", {"x1": f"{x0:.0f}", "x2": f"{x0 + width - 90:.0f}", "y1": f"{y:.1f}",
                                                 "y2": f"{y:.1f}", "stroke": "#ddd"})
            put(f"1e{power}", x0 - 6, y + 4, 9, "end", "#666")
        for budget in budgets:
            put(str(budget), place(budget, 1)[0], top + height + 14, 9, "middle", "#666")
        for colour, (_, strategy) in zip(COLOURS, curves):
            points = [place(b, hit.kl / hit.positions) for b in budgets
                      if (hit := lookup(found, budget=b, **strategy)) is not None]
            if len(points) > 1:
                ElementTree.SubElement(svg, "polyline", {
                    "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points), "fill": "none", "stroke": colour,
                    "stroke-width": "2", "stroke-dasharray": "5 3" if "score" in strategy else "none"})
            for x, y in points:
                ElementTree.SubElement(svg, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "2.5", "fill": colour})
    put("budget, tokens per retrieval head and step", left, top + height + 32, 10)
    for i, (colour, (label, _)) in enumerate(zip(COLOURS, curves)):
        put(label, left + (i % 3) * 230, top + height + 50 + i // 3 * 16, 11, fill=colour)
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def self_test():
    strategy = {**PRODUCT, "budget": 512, "interval": 1}
    base = {"task": "needle", "length": 8192, "source": "1", "heads": "half", "strategy": strategy,
            "is_product": False, "answers": 10, "right": 7, "positions": 100, "same_top": 90, "kl": 0.5,
            "recall": None, "lists_due": 100, "lists_made": 50}
    other = {**base, "source": "2", "right": 10, "positions": 300, "kl": 0.1, "lists_made": 100}
    product = {**base, "is_product": True, "right": 0}
    found = sums([base, other, product], task="needle")
    assert lookup(found, budget=512, interval=1).cell() == "17/20 0.2000"  # (50 + 30) / 400
    text = tables([base, other, product])
    assert "17/20 0.2000 [75%]" in text and "8K 1; 8K 2" in text, text
    assert ElementTree.fromstring(draw([base, other])) is not None
    texts = {**base, "task": "text", "answers": 0, "right": 0, "recall": 0.5}
    assert lookup(sums([texts]), budget=512, interval=1).cell() == "90.0 0.5000 50%"
    print("plot_selector_study: self test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*")
    parser.add_argument("--svg")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    if not args.results:
        parser.error("RESULTS.jsonl is missing, expected what tools/run_selector_study.sh wrote")
    records = read(args.results)
    print(tables(records))
    if args.svg:
        pathlib.Path(args.svg).write_text(draw(records))


if __name__ == "__main__":
    main()
