#!/usr/bin/env python3
"""Whether docs/server_promises.md names tests that exist, and leaves out no number.

check_promises.py [SOURCE_DIR]: exit status 1 with a line per problem.
"""
import pathlib
import re
import sys

# Of the survey that the numbers come from.
TABLES = {"Complaints": 55, "Classes of vulnerability": 22}


def existing_tests(source):
    names = set()
    for folder in ("src", "tests"):
        for path in (source / folder).rglob("*.cc"):
            text = path.read_text(encoding="utf-8")
            names |= set(re.findall(r"^(?:TYPED_)?TEST(?:_[FP])?\(\w+,\s*(\w+)\)", text, re.MULTILINE))
            if path.stem.endswith("_fuzz"):
                names.add(path.stem)
    for path in (source / "tests").rglob("CMakeLists.txt"):
        names |= set(re.findall(r"add_test\(NAME (\w+)", path.read_text(encoding="utf-8")))
    return names


def numbers(cell):
    return [int(number) for number in re.findall(r"\d+", cell)]


def problems(source):
    tests = existing_tests(source)
    page = (source / "docs" / "server_promises.md").read_text(encoding="utf-8")
    for title, last in TABLES.items():
        section = page.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
        rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
        seen = sorted(number for row in rows for number in numbers(row[0]))
        if seen != list(range(1, last + 1)):
            yield f"{title}: expected each of 1 to {last} once, got {seen}"
        for row in rows:
            named = re.findall(r"`(\w+)`", row[-1])
            says_why = re.search(r"\bnone\b|does not apply", row[-1])
            if numbers(row[0]) and not says_why and not set(named) & tests:
                yield f"{title}, {row[0].strip()}: names no test, and does not say why"
    for name in re.findall(r"`([A-Z]\w+|\w+_test|\w+_fuzz)`", page):
        if name not in tests:
            yield f"there is no test {name}"


def main():
    source = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    found = list(problems(source))
    for problem in found:
        print(f"docs/server_promises.md: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
