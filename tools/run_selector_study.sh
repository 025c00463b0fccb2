#!/usr/bin/env bash
# The selector study of docs/studies/selector.md, from the source tree: hours on two cores.
#
#   tools/run_selector_study.sh [OUT.jsonl]      # goes on where an interrupted run of it stopped
#   tools/plot_selector_study.py OUT.jsonl --svg docs/studies/selector.svg       # tables and plot
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-selector_study.jsonl}
study=${SELECTOR_STUDY:-build/bench/selector_study}
[[ -x $study ]] || ninja -C build selector_study

# Two texts that any Debian 12 with its compiler has: prose, and code.
texts=$(mktemp -d)
trap 'rm -rf "$texts"' EXIT
(cd /usr/share/common-licenses && cat GPL-3 GPL-2 LGPL-2.1 Apache-2.0 MPL-2.0 Artistic) >"$texts/licences.txt"
cp /usr/include/c++/12/bits/stl_algo.h "$texts/"

for heads in half none; do
  "$study" "$out" needle 8192 1 $heads
  "$study" "$out" text 16384 "$texts/licences.txt" $heads
  "$study" "$out" text 16384 "$texts/stl_algo.h" $heads
done
for shape in gqa4_d128 gqa8_d64 mha_d96; do
  "$study" "$out" random 16384 "$texts/licences.txt" $shape
done
"$study" "$out" needle 8192 4 half
"$study" "$out" needle 16384 2 half
"$study" "$out" needle 32768 1 half
"$study" "$out" needle 32768 5 half
"$study" "$out" needle 32768 3 none
"$study" "$out" text 32768 "$texts/stl_algo.h" half
