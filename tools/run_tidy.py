#!/usr/bin/env python3
"""Runs clang-tidy-14 over sources of the compile database, several at a time.

`./dev lint` checks every file; `.ci/run` passes --changed. What counts as changed: files that
differ from $LSERVE_TIDY_BASE if that is set, otherwise files touched by the commits of the last
24 hours before HEAD (a fresh clone does not know what was reviewed before). A changed header
stands for one source that includes it. With --budget, files that did not get their turn are
counted and named, and fail the run; the order is a hash of HEAD and the path, so
that a rerun of one commit checks the same files and the next commit starts elsewhere.
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

# Tests convert and multiply small constants (they are compiled without -Wconversion too), need not
# be fast, and the analyzer spends its time inside googletest's templates.
TEST_CHECKS = ("-bugprone-implicit-widening-of-multiplication-result,-bugprone-narrowing-conversions,"
               "-bugprone-misplaced-widening-cast,-performance-*,-clang-analyzer-*")
IS_TEST = re.compile(r"_(test|bench|fuzz|testing)\.cc$|^test_")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def git(*words):
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout


def compile_database(build):
    entries = json.loads((build / "compile_commands.json").read_text())
    files = {pathlib.Path(e["directory"], e["file"]).resolve() for e in entries}
    # Device code needs a clang that knows this CUDA; clang 14 does not.
    return sorted(f for f in files if f.is_relative_to(ROOT) and f.suffix == ".cc")


def changed_paths():
    base = os.environ.get("LSERVE_TIDY_BASE")
    if base:
        how = f"changed since {base}"
        names = git("diff", "--name-only", base, "--") + git("ls-files", "--others", "--exclude-standard")
    else:
        head_time = int(git("log", "-1", "--format=%ct"))
        how = "touched by the commits of the 24 hours before HEAD (LSERVE_TIDY_BASE is not set)"
        names = git("log", "--format=", "--name-only", f"--since={head_time - 24 * 3600}", "HEAD")
    return how, {ROOT / name for name in names.split("\n") if name}


def sources_for(changed, database):
    """The changed sources, and for a changed header its own source or else one that includes it."""
    chosen = {f for f in database if f in changed}
    for header in sorted(p for p in changed if p.suffix == ".h" and p.exists()):
        own = [header.with_suffix(".cc")]
        include = f'#include "{os.path.relpath(header, ROOT / "src")}"'
        users = own if own[0] in database else [f for f in database if include in f.read_text()]
        chosen.update(users[:1])
    return sorted(chosen)


def shuffled(files):
    head = git("rev-parse", "HEAD").strip()
    return sorted(files, key=lambda f: hashlib.sha256(f"{head} {f.relative_to(ROOT)}".encode()).digest())


def check(file, build, deadline):
    """(file, seconds, findings); seconds is None if the time was up before its turn."""
    begin = time.monotonic()
    if begin > deadline:
        return file, None, ""
    command = ["clang-tidy-14", "-p", build, "--quiet", str(file)]
    if IS_TEST.search(file.name):
        command.append(f"--checks={TEST_CHECKS}")
    done = subprocess.run(command, capture_output=True, text=True)
    findings = done.stdout.strip()
    if done.returncode != 0 and not findings:
        findings = f"{file}: clang-tidy ended with status {done.returncode}: {done.stderr.strip()}"
    return file, time.monotonic() - begin, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--changed", action="store_true", help="only what changed (see above)")
    parser.add_argument("--budget", type=float, help="seconds; no file starts after that")
    parser.add_argument("files", nargs="*", help="only these files")
    arguments = parser.parse_args()

    files = compile_database(arguments.build)
    how = "in the compile database"
    if arguments.files:
        wanted = {pathlib.Path(f).resolve() for f in arguments.files}
        files, how = sources_for(wanted, files), "asked for"
    elif arguments.changed:
        how, changed = changed_paths()
        files = sources_for(changed, files)
    print(f"clang-tidy: {len(files)} files {how}", flush=True)

    deadline = time.monotonic() + (arguments.budget or float("inf"))
    reports, left_out, slowest, bad = set(), [], (0, None), 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        order = shuffled(files) if arguments.budget else files
        for file, seconds, findings in pool.map(lambda f: check(f, arguments.build, deadline), order):
            if seconds is None:
                left_out.append(file.relative_to(ROOT).as_posix())
                continue
            slowest = max(slowest, (seconds, file.name))
            bad += bool(findings)
            # A header's finding comes back with every source that includes it: print it once.
            if findings and findings not in reports:
                reports.add(findings)
                print(findings, flush=True)
    checked = len(files) - len(left_out)
    print(f"clang-tidy: checked {checked} of {len(files)} files, {bad} with findings; "
          f"slowest {slowest[1]} {slowest[0]:.0f} s")
    if left_out:
        print(f"clang-tidy: out of time after {arguments.budget:.0f} s; NOT checked: "
              + " ".join(sorted(left_out)))
    return 1 if bad or left_out else 0


if __name__ == "__main__":
    sys.exit(main())
