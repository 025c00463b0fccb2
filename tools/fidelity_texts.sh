#!/usr/bin/env bash
# The texts of docs/studies/fidelity.md, from the files of a Debian 12 with compiler and Python: tools/fidelity_texts.sh DIR
set -euo pipefail
out=${1:?expected a folder to write to}
mkdir -p "$out"
(cd /usr/share/common-licenses && cat MPL-2.0 Apache-2.0 LGPL-2.1) >"$out/prose.txt"
cp /usr/lib/python3.11/argparse.py "$out/code.txt"
(cd /usr/include/c++/12/bits && cat stl_algo.h basic_string.h regex_automaton.h shared_ptr_base.h stl_map.h \
  stl_vector.h hashtable.h stl_tree.h) >"$out/long.txt"
