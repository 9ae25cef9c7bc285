#!/usr/bin/env bash
# Ten minutes on a rented GPU, without a network:
#
#   benchmarks/gpu/ten_minutes.sh PARTS OUT [arguments of python -m benchmarks.gpu]
#
# PARTS is what `python -m benchmarks.gpu.pack` made, OUT gets rows.jsonl, gpu.json and the log.
# PYTHON names the interpreter, by default python3; it needs torch, transformers and onnx.
set -euo pipefail
started=$SECONDS
parts=$(realpath "$1") out=$2
shift 2
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}

# the weights are written to memory if it can hold them all
needed_kb=$((40 << 20)) temporary=${TMPDIR:-/tmp}
free_kb=$(df --output=avail /dev/shm 2>/dev/null | tail -1 || echo 0)
if ((free_kb > needed_kb)); then temporary=/dev/shm; fi
work=$(mktemp -d "$temporary/ten-minutes-XXXXXX")
trap 'rm -rf "$work"' EXIT

mkdir "$work/site"
"$python" -m tarfile -e "$parts/bundles.tar.xz" "$work"
for part in "$parts"/*; do
  case $part in
    */bundles.tar.xz) ;;
    *.tar.xz) "$python" -m tarfile -e "$part" "$work/site" ;; # onnxruntime-gpu
    *.whl) "$python" -m zipfile -e "$part" "$work/site" ;;
  esac
done
export PYTHONPATH=$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
"$python" -m benchmarks.gpu "$work" -o "$out" --spent $((SECONDS - started)) "$@" 2>&1 |
  tee "$out/log.txt"
