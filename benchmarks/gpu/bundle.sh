#!/usr/bin/env bash
# Downloads what a GPU machine without network lacks, prunes it and packs it: one archive a package.
#
#   benchmarks/gpu/bundle.sh [FOLDER]      default: gpu-bundle beside benchmarks/
#
# For Python 3.12 on x86-64 Linux. The machine is expected to have torch, transformers and what these need, numpy,
# pillow, matplotlib, jinja2, typer, rich, PyYAML, fsspec, pytest, hypothesis and psutil. PACKAGES names others.
# All archives together should be below LIMIT_MIB; else copy some of them, run `run.sh --unpack-only`, and then
# copy the others.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
out="${1:-$root/gpu-bundle}"
LEVEL="${LEVEL:-8}" # of xz
LIMIT_MIB="${LIMIT_MIB:-60}"
read -ra packages <<< "${PACKAGES:-polars polars-runtime-32 pyarrow zarr numcodecs donfig google-crc32c \
faiss-cpu universal_pathlib pathlib_abc}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

rm -rf "$out"
mkdir -p "$out"
platforms=()
for n in 2_28 2_27 2_24 2_17 2014 2_12 2010 1; do
    case "$n" in 2014 | 2010 | 1) platforms+=(--platform "manylinux${n}_x86_64") ;;
        *) platforms+=(--platform "manylinux_${n}_x86_64") ;; esac
done
for package in "${packages[@]}"; do
    # The version of constraints.txt, if it has one.
    pin="$(grep -i "^${package}==" "$root/constraints.txt" || echo "$package")"
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" -d "$scratch/wheels" "${pin%% *}"
done
for wheel in "$scratch"/wheels/*.whl; do
    name="$(basename "$wheel")"; name="${name%%-*}"
    site="$scratch/$name"
    mkdir "$site"
    "${PYTHON:-python3}" -m zipfile -e "$wheel" "$site"
    # Headers, tests, sources of extensions, and Arrow's own clients of servers and of object stores.
    find "$site" \( -name tests -o -name include -o -name __pycache__ \) -type d -prune -exec rm -rf {} +
    find "$site" \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.h' -o -name '*.pyi' \
        -o -name '*flight*' -o -name 'libarrow_s3*' -o -name '_s3fs*' -o -name '_gcsfs*' -o -name '_azurefs*' \) -delete
    if [ "$name" = faiss_cpu ]; then # one build of three: that for AVX2
        find "$site" \( -name '*avx512*' \) -delete
    fi
    find "$site" -name '*.so*' -type f -exec strip --strip-unneeded {} + 2>/dev/null || true
    tar -C "$site" -c . | xz "-$LEVEL" > "$out/$name.tar.xz"
done
du -k "$out"/* | awk '{printf "%6.1f MiB  %s\n", $1 / 1024, $2}'
total="$(du -sk "$out" | awk '{printf "%.1f", $1 / 1024}')"
echo "$total MiB in $out"
awk -v total="$total" -v limit="$LIMIT_MIB" 'BEGIN { if (total > limit) print "that is more than " limit \
    " MiB: carry it in two calls, the first with run.sh --unpack-only" }'
