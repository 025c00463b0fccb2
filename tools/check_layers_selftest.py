"""The self test of check_layers.py: a tree that obeys gives no finding, and for every rule a tree
that breaks it gives exactly that finding. Run with `tools/check_layers.py --self-test`."""
import pathlib
import tempfile

import check_layers

HEADER = "// What it is.\n#pragma once\n"
README = "line\n" * 6
LONG = HEADER + "int f();\n" * 900
TWIN = "// A file.\n" + "".join(f"int value_{i} = {i};\n" for i in range(45))
KERNEL = HEADER + "int f();\n" * 600

# Names every source of CLEAN and BREAKS, so that only the rule in question fires.
def cmake_for(tree):
    extra = dict(tree)
    for name in tree:
        if name.endswith((".cc", ".cu")) and not name.endswith("_bench.cc"):
            folder, _, file = name.rpartition("/")
            cmake = f"{folder}/CMakeLists.txt"
            if file not in extra.get(cmake, ""):
                extra[cmake] = extra.get(cmake, "") + f"add_sources({file})\n"
    return extra


# A small tree that obeys every rule, some of them at the edge.
CLEAN = {
    "include/lserve/version.h": HEADER,
    "src/base/README.md": README,
    "src/base/CMakeLists.txt": "lserve_library(NAME base SRCS log.cc check.cc)\n",
    "src/base/status.h": HEADER + "#define LS_TRY(x) x\n",
    "src/base/log.cc": '#include <spdlog/spdlog.h>\n\n#include "base/status.h"\n',
    "src/base/check.cc": '#include "base/status.h"\nvoid Die() { std::fputs("x", stderr); std::abort(); }\n',
    "src/base/json.cc": "#include <boost/json/parser.hpp>\n",
    "src/kv/README.md": README,
    "src/kv/CMakeLists.txt": "lserve_library(NAME kv SRCS pool.cc DEPS base)\n",
    "src/kv/pool.h": HEADER + '#include "base/status.h"\n',
    # Words in comments and strings are not code; snprintf prints nowhere.
    "src/kv/pool.cc": '#include "kv/pool.h"\n// exit(1), getenv("HOME"): no.\n'
                      'const char* kText = "printf(getenv())";\nint n = snprintf(b, 4, "x");\n'
                      "int separated = 1'000'000;\n",
    "src/attention/README.md": README,
    "src/attention/CMakeLists.txt": "lserve_library(NAME attention DEPS kv)\n",
    "src/attention/page_plan.h": HEADER + '#include "kv/pool.h"\n',
    "src/attention/policy.h": HEADER,
    "src/backend/README.md": README,
    "src/backend/CMakeLists.txt": "lserve_library(NAME backend DEPS base kv attention)\n"
                                  "lserve_library(NAME registry SRCS registry.cc DEPS backend cpu)\n",
    "src/backend/backend.h": HEADER + '#include "attention/page_plan.h"\n',
    "src/backend/registry.h": HEADER,
    "src/backend/registry.cc": '#include "backend/registry.h"\n#include "backend/cpu/cpu.h"\n',
    "src/backend/cpu/README.md": README,
    "src/backend/cpu/CMakeLists.txt": "lserve_library(NAME cpu SRCS cpu.cc DEPS backend\n"
                                      "  TESTS cpu_test.cc TEST_DEPS reference)\n"
                                      "foreach(op cpu gpu)\n  add_executable(b ${op}_bench.cc)\n",
    "src/backend/cpu/cpu_bench.cc": '#include "backend/cpu/cpu.h"\n',
    "src/backend/cpu/cpu.h": HEADER + '#include "backend/backend.h"\n',
    "src/backend/cpu/cpu.cc": '#include "backend/cpu/cpu.h"\n#include <immintrin.h>\n',
    "src/backend/cpu/cpu_test.cc": '#include <gtest/gtest.h>\n#include "backend/reference/ref.h"\n',
    "src/backend/reference/README.md": README,
    "src/backend/reference/CMakeLists.txt": "lserve_library(NAME reference DEPS backend)\n",
    "src/backend/reference/ref.h": HEADER + '#include "backend/backend.h"\n',
    "tests/support/tree.h": HEADER,
    "src/kv/pool_test.cc": '#include "kv/pool.h"\n#include "support/tree.h"\n',
    "apps/lserve.cc": '#include <CLI/CLI.hpp>\n#include "backend/registry.h"\nint main() { puts("x"); }\n',
}

# rule -> changes to CLEAN that must give exactly one finding, of that rule.
BREAKS = [
    ("layers", {"src/base/up.h": HEADER + '#include "kv/pool.h"\n'}),
    ("layers", {"src/backend/look.h": HEADER + '#include "attention/policy.h"\n'}),
    ("layers", {"src/backend/cpu/peek.cc": '#include "backend/reference/ref.h"\n'}),
    ("layers", {"src/backend/cpu/up.cc": '#include "backend/registry.h"\n'}),
    ("layers", {"src/backend/shortcut.cc": '#include "backend/cpu/cpu.h"\n'}),
    ("layers", {"src/kv/up_test.cc": '#include "backend/backend.h"\n'}),
    ("layers", {"src/kv/app.cc": '#include "apps/lserve.cc"\n'}),
    ("layers", {"src/kv/support.cc": '#include "support/tree.h"\n'}),
    ("layers", {"src/oops/x.cc": "int f();\n"}),
    ("layers", {"src/kv/public.cc": '#include "lserve/version.h"\n'}),
    ("layers", {"include/lserve/engine.h": HEADER + '#include "kv/pool.h"\n'}),
    ("include", {"src/kv/local.cc": '#include "pool.h"\n'}),
    ("third-party", {"src/kv/json.cc": "#include <boost/json.hpp>\n"}),
    ("third-party", {"src/kv/log.cc": "#include <spdlog/spdlog.h>\n"}),
    ("third-party", {"src/kv/flags.cc": "#include <CLI/CLI.hpp>\n"}),
    ("third-party", {"src/kv/simd.cc": "#include <immintrin.h>\n"}),
    ("third-party", {"src/backend/simd.cc": "#include <hwy/highway.h>\n"}),
    ("third-party", {"src/base/regex.cc": "#include <pcre2.h>\n"}),
    ("third-party", {"src/backend/gpu.cc": "#include <cuda_runtime.h>\n"}),
    ("third-party", {"src/kv/not_test_code.cc": "#include <gtest/gtest.h>\n"}),
    ("deps", {"src/base/CMakeLists.txt": "lserve_library(NAME base SRCS log.cc TEST_DEPS kv)\n"}),
    ("deps", {"src/kv/CMakeLists.txt": "lserve_library(NAME kv SRCS pool.cc DEPS base nowhere)\n"}),
    ("deps", {"src/backend/cpu/CMakeLists.txt":
              "lserve_library(NAME cpu SRCS cpu.cc DEPS backend reference)\nadd(cpu_bench.cc)\n"}),
    ("deps", {"src/kv/CMakeLists.txt": "lserve_library(NAME kv SRCS pool.cc DEPS base)\n"
              "lserve_library(NAME twin_a SRCS pool.cc DEPS twin_b)\n"
              "lserve_library(NAME twin_b SRCS pool.cc DEPS twin_a)\n"}),
    ("ascii", {"src/kv/umlaut.cc": "// na\u00efve\n"}),
    ("length", {"src/kv/long.h": LONG}),
    ("length", {"src/backend/cpu/long.cuh": KERNEL}),
    ("name", {"src/kv/CamelCase.cc": "int f();\n"}),
    ("header", {"src/kv/no_head.h": "#pragma once\n"}),
    ("header", {"src/kv/no_guard.h": "// What it is.\n"}),
    ("using-namespace", {"src/kv/using.h": HEADER + "using namespace std;\n"}),
    ("macro", {"src/kv/macro.cc": "#define DISPATCH(x) x\n"}),
    ("dead-code", {"src/kv/dead.cc": "#if 0\n#endif\n"}),
    ("getenv", {"src/kv/env.cc": 'auto* home = std::getenv("HOME");\n'}),
    ("wall-clock", {"src/kv/date.cc": "auto now = std::chrono::system_clock::now();\n"}),
    ("print", {"src/kv/print.cc": 'void F() { std::printf("x"); }\n'}),
    ("print", {"src/kv/cout.cc": 'void F() { std::cout << "x"; }\n'}),
    ("exit", {"src/kv/leave.cc": "void F() { std::exit(1); }\n"}),
    ("twins", {"src/kv/twin_one.cc": TWIN, "src/kv/twin_two.cc": TWIN}),
    ("cmake", {"src/kv/CMakeLists.txt":
               "lserve_library(NAME kv SRCS pool.cc gone.cc DEPS base TESTS pool_test.cc)\n"}),
    ("cmake", {"src/kv/forgotten_test.cc": "int f();\n"}),
    ("link", {"README.md": "[here](docs/nowhere.md) [there](https://example.org/x)\n"}),
    ("readme", {"src/base/README.md": "too short\n"}),
]


def findings_of(tree):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in tree.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return check_layers.Checker(root).run()


def run():
    failures = []
    findings = findings_of(cmake_for(CLEAN))
    if findings:
        failures.append("the clean tree gives: " + "; ".join(findings))
    for rule, changes in BREAKS:
        tree = {**cmake_for(CLEAN), **changes}
        findings = findings_of(tree if rule == "cmake" else cmake_for(tree))
        if len(findings) != 1 or f"[{rule}]" not in findings[0]:
            failures.append(f"{sorted(changes)}: expected one [{rule}], got {findings}")
    for failure in failures:
        print("self test failed:", failure)
    print(f"layers self test: {len(BREAKS) + 1} trees, {len(failures)} failures")
    return 1 if failures else 0
