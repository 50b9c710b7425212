#!/usr/bin/env bash
# Checks xDiT on a machine with a GPU. Neither cargo nor a network is needed there.
#
#   scripts/gpu-check.sh pack FOLDER      builds the programs here, with the features of $FEATURES, into FOLDER
#   scripts/gpu-check.sh run FOLDER       runs the checks on $DEVICE (cuda), and prints a table
#
# `run` needs FOLDER and the goldens ($XDIT_GOLDENS, or those of this checkout). Logs go to $OUT (FOLDER/logs).
# $LIMIT_S (900) ends a check that hangs. The exit status is that of the worst check.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
command=${1:-} folder=${2:-}
if [ -z "$folder" ] || { [ "$command" != pack ] && [ "$command" != run ]; }; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi

if [ "$command" = pack ]; then
    features=${FEATURES:-cuda,wgpu}
    mkdir -p "$folder"
    cd "$here"
    selected=$(for crate in xdit-cli xdit-tests xdit-kernels; do
        for feature in ${features//,/ }; do printf '%s/%s,' $crate $feature; done
    done)
    # The same selection of packages for both, so that Burn is compiled once.
    cargo test --release --no-run --message-format json -p xdit-cli -p xdit-tests -p xdit-kernels \
        --features "$selected" |
        python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] in ("xdit", "xdit_kernels", "operations", "devices"):
        if message["target"]["name"] != "xdit" or not message["profile"]["test"]:
            print(message["target"]["name"], message["executable"])
' | while read -r name path; do
        strip -o "$folder/$name" "$path"
    done
    ls -l "$folder"
    exit
fi

device=${DEVICE:-cuda} limit=${LIMIT_S:-900}
export XDIT_TEST_DEVICE=$device XDIT_GOLDENS=${XDIT_GOLDENS:-$here/tests/goldens}
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
logs=${OUT:-$folder/logs}
mkdir -p "$logs"
rows=() worst=0

# check NAME COMMAND…: runs it, and keeps its log, status and time.
check() {
    local name=$1 log status=ok start end
    shift
    log=$logs/${name// /-}.log
    start=$(date +%s)
    timeout "$limit" "$@" >"$log" 2>&1 || { status="FAILED ($?)" && worst=1; }
    end=$(date +%s)
    local counts
    counts=$(sed -n 's/^test result: [^.]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$log" | tail -1)
    rows+=("$(printf '%-34s %-14s %5d s  %s' "$name" "$status" $((end - start)) "$counts")")
    echo "${rows[-1]}"
}

check "devices" "$folder/xdit" devices
for type in f32 bf16 f16; do
    for version in reference own; do
        check "operations $type $version" "$folder/operations" --test-threads 4 --nocapture "$type::$version"
    done
done
if [ "$device" = cuda ]; then
    check "order of library calls" "$folder/xdit_kernels" --ignored --nocapture vendor::
fi
check "goldens f32, brief" "$folder/devices" --ignored --nocapture a_call_of_each_family
check "goldens f32" "$folder/devices" --ignored --nocapture every_recorded_call
check "ranks of one device" "$folder/devices" --ignored --nocapture ranks_of_one_device
check "one batch of guidance" "$folder/devices" --ignored --nocapture one_batch_equals_its_branches
check "pictures in bf16" "$folder/devices" --ignored --nocapture pictures_in_bf16

echo
echo "$device on $(uname -n), $("$folder/xdit" --version), $(date -u +%F)"
cat "$logs/devices.log"
printf '%s\n' "${rows[@]}"
grep -h "off by\|dB from" "$logs"/goldens-f32.log "$logs"/pictures-in-bf16.log 2>/dev/null | sort -u || true
exit $worst
