#!/bin/sh
# check_emulated.sh QEMU FOLDER: runs programs of a build folder on emulated CPUs, where an
# instruction that the CPU does not have ends the process.  Kernels must be right, and a model must
# give the bits that it gives on this machine.
set -eu
qemu=$1
folder=$2
model=$(mktemp)
trap 'rm -f "$model"' EXIT
"$folder/tests/write_model" "$model" small
expected=$("$folder/bitm" verify "$model" --threads 1 | grep -v '^file')
for cpu in Nehalem Haswell; do
  echo "== $cpu"
  "$qemu" -cpu $cpu "$folder/tests/checkkernels" --seed 1
  found=$("$qemu" -cpu $cpu "$folder/bitm" verify "$model" --threads 1 | grep -v '^file')
  echo "$found"
  if [ "$found" != "$expected" ]; then
    echo "FAILED: this machine has"
    echo "$expected"
    exit 1
  fi
done
