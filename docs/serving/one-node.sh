#!/usr/bin/env bash
# Serve one model on the GPUs of this machine: REPLICAS servers with TENSOR_PARALLEL GPUs each, on ports PORT, PORT + 1, …
# Then, if a command is given, run it with the servers' addresses in $CAI_SERVERS, and stop them when it ends.
#
#   REPLICAS=4 TENSOR_PARALLEL=2 docs/serving/one-node.sh meta-llama/Llama-3.1-70B-Instruct \
#       sh -c 'cai run runs/mine.yaml --set "model.path=$CAI_SERVERS" --set window=1024 --only respond,critique'
#
# One server each, not --data-parallel-size: `cai` then sends requests about one text to one prefix cache, and a server may die alone.
# Behind one address instead: vllm serve MODEL --data-parallel-size 4 --tensor-parallel-size 2
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 MODEL [COMMAND ...]" >&2
    exit 2
fi
model=$1
shift
replicas=${REPLICAS:-1}
tensor_parallel=${TENSOR_PARALLEL:-1}
port=${PORT:-8000}
start_seconds=${START_SECONDS:-1800}
flags=${VLLM_FLAGS:-} # split at blanks: --max-model-len 4096 --enable-lora …

pids=()
stop() {
    for pid in ${pids[@]+"${pids[@]}"}; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

servers=""
for ((i = 0; i < replicas; i++)); do
    first=$((i * tensor_parallel))
    gpus=$(seq -s, "$first" $((first + tensor_parallel - 1)))
    # shellcheck disable=SC2086
    CUDA_VISIBLE_DEVICES=$gpus vllm serve "$model" --host 127.0.0.1 --port $((port + i)) \
        --tensor-parallel-size "$tensor_parallel" $flags >"vllm-$((port + i)).log" 2>&1 &
    pids+=($!)
    servers+="${servers:+,}http://127.0.0.1:$((port + i))/v1"
done

for ((i = 0; i < replicas; i++)); do
    waited=0
    until curl -sf -o /dev/null "http://127.0.0.1:$((port + i))/v1/models"; do
        if ! kill -0 "${pids[i]}" 2>/dev/null; then
            echo "the server on port $((port + i)) ended; see vllm-$((port + i)).log" >&2
            exit 1
        fi
        if ((waited >= start_seconds)); then
            echo "no answer on port $((port + i)) after $start_seconds s; see vllm-$((port + i)).log" >&2
            exit 1
        fi
        sleep 1
        waited=$((waited + 1))
    done
done

export CAI_SERVERS=$servers
echo "serving at $CAI_SERVERS" >&2
if [ $# -gt 0 ]; then
    "$@"
else
    wait
fi
