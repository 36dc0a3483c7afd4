#!/usr/bin/env bash
# Measures this project on one GPU in at most eight minutes; writes benchmarks/results/gpu_<card>_<yyyymm>.md as it
# goes, so that a run that is cut off leaves what it has.
#
#   benchmarks/gpu/run.sh [--device cuda] [--sizes full|tiny] [--only SECTION,...] [--out FOLDER]
#
# It needs Python with torch and transformers, and no network. Packages that are missing there come from the
# archives of benchmarks/gpu/bundle.sh in BUNDLE (default: gpu-bundle beside benchmarks/), unpacked into SITE.
#   --unpack-only    unpacks them and ends, for archives that come in several calls
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
BUNDLE="${BUNDLE:-$root/gpu-bundle}"
SITE="${SITE:-${TMPDIR:-/tmp}/siglip2-cache-site}"

mkdir -p "$SITE"
for archive in "$BUNDLE"/*.tar.xz; do
    [ -e "$archive" ] || continue
    done="$SITE/.$(basename "$archive")"
    [ -e "$done" ] || { tar -xJf "$archive" -C "$SITE" && touch "$done"; }
done
if [ "${1:-}" = --unpack-only ]; then
    ls "$SITE"
    exit
fi
# The folders of the package are at the root of the checkout; its import name is siglip2_cache.
ln -sfn "$root" "$SITE/siglip2_cache"
export PYTHONPATH="$SITE:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$root/benchmarks/gpu/report.py" "$@"
