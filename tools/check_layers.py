#!/usr/bin/env python3
"""Checks what the compiler does not: which folder may include which, and the house rules.

It reads the sources and the CMake files as text; it builds nothing. `./dev layers` runs the
self test first (every rule must fire on a tree made to break it), then the check. Each finding
is one line: file:line: [rule] what is wrong and what to do.
"""
import argparse
import dataclasses
import pathlib
import posixpath
import re
import sys

# Bottom up. A folder may include itself and what is listed; an entry that ends in .h names one
# header. docs/adr/0003 says why. `apps` may include anything.
INTERFACE = ["base", "tensor", "kv", "attention/page_plan.h"]
BACKEND_HEADERS = ["backend/backend.h", "backend/ops.h", "backend/buffer.h", "backend/kv_store.h",
                   "backend/logit_edits.h", "backend/token_draw.h"]
ALLOWED = {
    "base": [],
    "tensor": ["base"],
    "tokenizer": ["base"],
    "loader": ["base", "tensor"],
    "kv": ["base", "tensor"],
    "attention": ["base", "tensor", "kv"],
    "backend": INTERFACE,
    "backend/reference": INTERFACE + ["backend"],
    "backend/cpu": INTERFACE + ["backend"],
    "backend/cuda": INTERFACE + ["backend"],
    "model": ["base", "tensor", "loader", "kv", "attention"] + BACKEND_HEADERS,
    "lserve": ["base", "tensor", "attention"],  # include/lserve, the public headers
    # The engine makes its own backend and reads the head file: it is the root of what it owns.
    "engine": ["base", "tensor", "loader", "kv", "attention", "model", "tokenizer", "lserve",
               "backend/registry.h"] + BACKEND_HEADERS,
    "eval": ["base", "tensor", "loader", "kv", "attention", "model", "tokenizer", "engine", "lserve"],
    # Benches make models in memory, meter ops, and measure what the machine can do at best.
    "bench": ["base", "tensor", "loader", "kv", "attention", "model", "tokenizer", "engine",
              "lserve", "backend/cpu/ceilings.h", "backend/cpu/cpu_isa.h"] + BACKEND_HEADERS,
    "grammar": ["base", "tokenizer", "lserve"],
    # The settings of attention are part of a request.
    "server": ["base", "attention", "tokenizer", "grammar", "engine", "lserve"],
}
ORDER = list(ALLOWED)
# The one place that knows every backend by name.
REGISTRY = re.compile(r"^backend/registry\.(h|cc)$")
IMPLEMENTATIONS = ["backend/reference", "backend/cpu", "backend/cuda"]

# A third-party header, and the only places that may include it.
THIRD_PARTY = [
    (r"boost/json", r"base/json\.cc"),
    (r"boost/(asio|beast)|openssl/", r"server/.*"),
    (r"spdlog/|fmt/", r"base/log\.cc"),
    (r"CLI/", r"apps/.*"),
    (r"hwy/", r"backend/cpu/.*"),
    (r"(imm|x86|xmm|emm|tmm|avx)\w*intrin\.h", r"backend/cpu/.*|base/thread_pool\.cc"),
    (r"pcre2|utf8proc", r"tokenizer/.*"),
    (r"cuda|cublas|nccl|nvToolsExt", r"backend/cuda/.*"),
]
# Macros whose names other libraries prescribe.
FOREIGN_MACROS = re.compile(r"HWY_\w+|PCRE2_CODE_UNIT_WIDTH")

MAX_LINES = {".cuh": 500}
DEFAULT_MAX_LINES = 800
MAX_TWIN_LINES = 40
SOURCES = {".h", ".cc", ".cuh", ".cu"}
HEADERS = {".h", ".cuh"}

PRINTS = re.compile(
    r"\b(?:printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|perror)\s*\(|\bstd::(?:cout|cerr|clog)\b")
# What jumps when somebody sets the clock; the one header that may ask for it.
WALL_CLOCK = re.compile(
    r"\bsystem_clock\b|\bgettimeofday\b|\bCLOCK_REALTIME|\butc_clock\b|\bstd::time\s*\(")
WALL_CLOCK_HOME = "base/wall_time.h"
EXITS = re.compile(r"(?<![\w.>])(?:exit|_exit|_Exit|quick_exit|abort|terminate)\s*\(")


@dataclasses.dataclass
class Source:
    """One file of the tree; `path` is relative to src/ or starts with apps/ or tests/."""

    path: str
    shown: str  # relative to the root, for messages
    text: str

    def __post_init__(self):
        self.lines = self.text.splitlines()
        self.code = strip_comments_and_strings(self.text).splitlines()
        self.suffix = pathlib.PurePosixPath(self.path).suffix
        stem = pathlib.PurePosixPath(self.path).stem
        self.is_test = bool(re.search(r"_(test|testing|bench|fuzz)$|^test_", stem))

    @property
    def folder(self):
        return folder_of(self.path)


def folder_of(path):
    """The layer that a path relative to src/ belongs to: "backend/cpu", "kv", "apps"."""
    parts = path.split("/")
    two = "/".join(parts[:2])
    return two if two in ALLOWED else parts[0]


def strip_comments_and_strings(text):
    """Blanks comments, string and character literals; line numbers stay the same."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^(\s]*)\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"'
        r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'",
        re.DOTALL)

    def blank(match):
        piece = match.group(0)
        newlines = "\n" * piece.count("\n")
        return newlines if piece.startswith("/") else '""' + newlines

    # The path of an #include is code here, not a string.
    parts = re.split(r"(^[ \t]*#[ \t]*include[^\n]*)", text, flags=re.MULTILINE)
    return "".join(p if i % 2 else pattern.sub(blank, p) for i, p in enumerate(parts))


def may_include(source_folder, target, is_test=False, source_path=""):
    """True if a file of `source_folder` may include `target` (a path relative to src/)."""
    target_folder = folder_of(target)
    if source_folder in ("apps", "tests") or source_folder == target_folder:
        return True
    if source_folder not in ALLOWED or target_folder not in ALLOWED:
        return False
    if REGISTRY.match(source_path) and target_folder in IMPLEMENTATIONS:
        return True
    if any(target == entry or target_folder == entry for entry in ALLOWED[source_folder]):
        # The registry stands above the backends: they may not look up to it.
        return not (REGISTRY.match(target) and source_folder in IMPLEMENTATIONS)
    # A test may also use whatever lies below its folder: a model test needs a backend.
    return is_test and ORDER.index(target_folder) < ORDER.index(source_folder)


class Checker:
    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.findings = []
        self.sources = list(self.read_sources())

    def read_sources(self):
        for top, prefix in (("src", ""), ("include", ""), ("apps", "apps/"), ("tests", "tests/")):
            base = self.root / top
            for path in sorted(base.rglob("*")):
                if path.suffix not in SOURCES or not path.is_file():
                    continue
                shown = path.relative_to(self.root).as_posix()
                raw = path.read_bytes()
                try:
                    text = raw.decode("ascii")
                except UnicodeDecodeError as error:
                    line = raw.count(b"\n", 0, error.start) + 1
                    self.find("ascii", shown, line, "sources are ASCII; escape this character")
                    text = raw.decode("utf-8", errors="replace")
                yield Source(prefix + path.relative_to(base).as_posix(), shown, text)

    def find(self, rule, file, line, what):
        self.findings.append(f"{file}:{line}: [{rule}] {what}")

    def run(self):
        for source in self.sources:
            self.check_includes(source)
            self.check_form(source)
            if source.folder in ("apps", "tests"):
                continue
            self.check_library_manners(source)
        self.check_twins()
        self.check_cmake()
        self.check_all_built()
        self.check_readmes()
        self.check_links()
        return self.findings

    def check_includes(self, source):
        for number, line in enumerate(source.code, 1):
            match = re.match(r'\s*#\s*include\s+(["<])([^">]+)[">]', line)
            if not match:
                continue
            quote, target = match.groups()
            if quote == "<":
                self.check_third_party(source, number, target)
                continue
            home = next((h for h in ("src/", "include/", "tests/", "")
                         if (self.root / (h + target)).is_file()), None)
            if home is None:
                self.find("include", source.shown, number,
                          f'"{target}" is no path below src/ or include/; write it from there on')
            elif home in ("tests/", ""):
                # Test support and apps: for tests and apps.
                if source.folder not in ("apps", "tests") and not (home == "tests/" and source.is_test):
                    self.find("layers", source.shown, number, f"src/ must not include {target}")
            elif not may_include(source.folder, target, source.is_test, source.path):
                allowed = ", ".join(ALLOWED.get(source.folder, [])) or "nothing"
                self.find("layers", source.shown, number,
                          f'{source.folder} must not include "{target}"; it may include: {allowed}')

    def check_third_party(self, source, number, target):
        if source.folder == "tests":
            return
        if re.match(r"g(test|mock)/", target) and not source.is_test:
            self.find("third-party", source.shown, number, f"<{target}> belongs in tests only")
        for header, places in THIRD_PARTY:
            if re.match(header, target) and not re.fullmatch(places, source.path):
                self.find("third-party", source.shown, number,
                          f"<{target}> may be included only in {places.replace(chr(92), '')}")

    def check_form(self, source):
        limit = MAX_LINES.get(source.suffix, DEFAULT_MAX_LINES)
        if len(source.lines) > limit and "Long because" not in "\n".join(source.lines[:8]):
            self.find("length", source.shown, len(source.lines),
                      f"{len(source.lines)} lines, at most {limit}; split it, or open it with "
                      '"// Long because ..."')
        if not re.fullmatch(r"[a-z0-9_]+(-inl)?\.\w+", pathlib.PurePosixPath(source.path).name):
            self.find("name", source.shown, 1, "file names are snake_case")
        is_header = source.suffix in HEADERS
        if is_header and not source.text.startswith("//"):
            self.find("header", source.shown, 1,
                      "open with 2-5 lines: what it is, what it is not, who uses it")
        if is_header and "-inl." not in source.path and "#pragma once" not in source.code:
            self.find("header", source.shown, 1, "a header needs #pragma once")
        for number, line in enumerate(source.code, 1):
            if is_header and re.search(r"\busing\s+namespace\b", line):
                self.find("using-namespace", source.shown, number, "not in a header")
            match = re.match(r"\s*#\s*define\s+(\w+)", line)
            if match and not match.group(1).startswith("LS_") and \
                    not FOREIGN_MACROS.fullmatch(match.group(1)):
                self.find("macro", source.shown, number,
                          f"macro {match.group(1)} must start with LS_; better, no macro at all")
            if re.match(r"\s*#\s*if\s+0\b", line):
                self.find("dead-code", source.shown, number, "delete it; git keeps it")

    def check_library_manners(self, source):
        prints_allowed = source.is_test or source.path == "base/check.cc"
        for number, line in enumerate(source.code, 1):
            if re.search(r"\b(?:secure_)?getenv\b", line):
                self.find("getenv", source.shown, number,
                          "the environment is read in apps/ only; pass a Config field down")
            if WALL_CLOCK.search(line) and source.path != WALL_CLOCK_HOME:
                self.find("wall-clock", source.shown, number,
                          "nothing waits by wall time, which jumps: use base/clock.h, or for a "
                          f"date {WALL_CLOCK_HOME}")
            if prints_allowed:
                continue
            if PRINTS.search(line) or re.search(r"#\s*include\s*<iostream>", line):
                self.find("print", source.shown, number, "src/ never prints; use base/log.h")
            if EXITS.search(line):
                self.find("exit", source.shown, number,
                          "src/ never ends the process; return a Status, or LS_CHECK a bug")

    def check_twins(self):
        """More than MAX_TWIN_LINES equal lines in a row in two files (blank lines not counted)."""
        seen, reported = {}, set()
        size = MAX_TWIN_LINES + 1
        for source in self.sources:
            kept = [(n, line.strip()) for n, line in enumerate(source.lines, 1) if line.strip()]
            for start in range(len(kept) - size + 1):
                window = "\n".join(line for _, line in kept[start:start + size])
                other, other_line = seen.setdefault(window, (source.shown, kept[start][0]))
                pair = (other, source.shown)
                if other != source.shown and pair not in reported:
                    reported.add(pair)
                    self.find("twins", source.shown, kept[start][0],
                              f"over {MAX_TWIN_LINES} lines equal to {other}:{other_line}; share them")

    def check_cmake(self):
        libraries = read_libraries(self.root)
        for library in libraries.values():
            for kind, deps in (("DEPS", library.deps), ("TEST_DEPS", library.test_deps)):
                for dep in deps:
                    if dep not in libraries:
                        self.find("deps", library.file, library.line,
                                  f"{library.name}: {kind} names {dep}, which no lserve_library defines")
                        continue
                    for bad in bad_edges(library, libraries[dep], kind == "TEST_DEPS"):
                        self.find("deps", library.file, library.line, bad)
        for cycle in find_cycles({n: l.deps for n, l in libraries.items()}):
            first = libraries[cycle[0]]
            self.find("deps", first.file, first.line, "circle: " + " -> ".join(cycle))

    def check_all_built(self):
        """A test that no CMakeLists.txt names never runs; a name without its file is no test."""
        lists = {}  # folder -> text
        for top in ("src", "apps", "tests"):
            for path in sorted((self.root / top).rglob("CMakeLists.txt")):
                lists[path] = re.sub(r"#[^\n]*", "", path.read_text())
        named = set()
        for path, text in lists.items():
            here = path.parent.relative_to(self.root).as_posix()
            for name in re.findall(r"(?<![\w$}/.-])[\w./-]+\.(?:cc|cu)\b", text):
                target = posixpath.normpath(f"{here}/{name}")
                named.add(target)
                if not (self.root / target).exists():
                    line = text.count("\n", 0, text.index(name)) + 1
                    self.find("cmake", path.relative_to(self.root).as_posix(), line,
                              f"names {name}, which does not exist")
            named.update(f"{here}/{name}" for name in names_from_loops(text))
        for source in self.sources:
            if source.suffix in (".cc", ".cu") and source.shown not in named:
                self.find("cmake", source.shown, 1, "no CMakeLists.txt names it: it is never built")

    def check_readmes(self):
        for folder in sorted({s.folder for s in self.sources} - {"apps", "tests", "lserve"}):
            if folder not in ALLOWED:
                self.find("layers", f"src/{folder}", 1, "unknown folder; add it to ALLOWED first")
                continue
            readme = self.root / "src" / folder / "README.md"
            lines = len(readme.read_text().splitlines()) if readme.exists() else 0
            if not 5 <= lines <= 15:
                self.find("readme", f"src/{folder}/README.md", 1,
                          f"{lines} lines, expected 5-15: what, heart file, what it may include")


    def check_links(self):
        """Relative links in Markdown lead somewhere."""
        pages = [p for top in ("src", "docs", "tools", "tests", "models", "bench")
                 for p in (self.root / top).rglob("*.md")]
        for page in sorted(pages + list(self.root.glob("*.md"))):
            shown = page.relative_to(self.root).as_posix()
            for number, line in enumerate(page.read_text().splitlines(), 1):
                for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", line):
                    if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                        self.find("link", shown, number, f"{target} does not exist")


@dataclasses.dataclass
class Library:
    name: str
    file: str
    line: int
    sources: list  # relative to src/
    deps: list
    test_deps: list

    @property
    def folder(self):
        return folder_of(self.sources[0])


def read_libraries(root):
    """The lserve_library() calls of src/**/CMakeLists.txt, by NAME."""
    words = {"NAME", "SRCS", "DEPS", "LIBS", "TESTS", "TEST_DEPS", "FUZZERS"}
    libraries = {}
    for path in sorted((root / "src").rglob("CMakeLists.txt")):
        text = re.sub(r"#[^\n]*", "", path.read_text())
        here = path.parent.relative_to(root / "src").as_posix()
        for call in re.finditer(r"lserve_library\s*\(([^)]*)\)", text):
            fields, current = {}, None
            for word in call.group(1).split():
                if word in words:
                    current = word
                else:
                    fields.setdefault(current, []).append(word)
            name = fields.get("NAME", ["?"])[0]
            named = fields.get("SRCS", []) or ["."]  # "." stands for a header-only folder
            sources = [posixpath.normpath(f"{here}/{s}") for s in named]
            library = Library(name, path.relative_to(root).as_posix(),
                              text.count("\n", 0, call.start()) + 1, sources,
                              fields.get("DEPS", []), fields.get("TEST_DEPS", []))
            if name in libraries:  # the other branch of an if()
                library.deps += libraries[name].deps
                library.test_deps += libraries[name].test_deps
            libraries[name] = library
    return libraries


def names_from_loops(text):
    """What foreach(x a b) makes of every ${x}_test.cc in the file."""
    for loop in re.finditer(r"foreach\s*\(\s*(\w+)\s+([^)]*)\)", text):
        variable, items = loop.groups()
        for name in re.findall(rf"[\w]*\$\{{{variable}\}}[\w]*\.(?:cc|cu)\b", text):
            yield from (name.replace(f"${{{variable}}}", item) for item in items.split())


def bad_edges(library, dep, is_test):
    # Linking `attention` for one of its headers is fine, hence the folder of every entry.
    headers = [e for e in ALLOWED.get(library.folder, []) if e.endswith(".h")]
    header_folders = {folder_of(h) for h in headers}
    for source in library.sources:
        if may_include(library.folder, dep.sources[0], is_test, source):
            return
    if dep.folder not in header_folders:
        yield f"{library.name} ({library.folder}) must not depend on {dep.name} ({dep.folder})"


def find_cycles(graph):
    done = set()

    def visit(node, trail):
        if node in trail:
            yield trail[trail.index(node):] + [node]
        elif node in graph and node not in done:
            for dep in graph[node]:
                yield from visit(dep, trail + [node])
            done.add(node)

    for node in graph:
        yield from visit(node, [])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=pathlib.Path(__file__).resolve().parent.parent,
                        help="the repository (default: the one that holds this script)")
    parser.add_argument("--self-test", action="store_true",
                        help="break every rule in a made-up tree and expect the finding")
    arguments = parser.parse_args()
    if arguments.self_test:
        sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
        import check_layers_selftest
        return check_layers_selftest.run()
    checker = Checker(arguments.root)
    findings = checker.run()
    for finding in findings:
        print(finding)
    print(f"layers: {len(checker.sources)} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
