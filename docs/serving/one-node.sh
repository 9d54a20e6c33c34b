#!/usr/bin/env bash
# Serve one model on the GPUs of this machine at one address: REPLICAS copies with TENSOR_PARALLEL GPUs each, on PORT.
# Then, if a command is given, run it with the address in $CAI_SERVER, and stop the server when it ends.
#
#   REPLICAS=4 TENSOR_PARALLEL=2 docs/serving/one-node.sh meta-llama/Llama-3.1-70B-Instruct \
#       sh -c 'cai run runs/mine.yaml --set "model.path=$CAI_SERVER" --set model.concurrency=256 --set window=512 --only respond,critique'
#
# vLLM itself balances the copies (data parallelism). Where one must be able to die alone, start each as a server and put vllm-router in
# front of them, as slurm.sbatch does.
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 MODEL [COMMAND ...]" >&2
    exit 2
fi
model=$1
shift
port=${PORT:-8000}
start_seconds=${START_SECONDS:-1800}
flags=${VLLM_FLAGS:-} # split at blanks: --max-model-len 4096 --enable-lora …
log=vllm-$port.log

server=
stop() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# shellcheck disable=SC2086
vllm serve "$model" --host 127.0.0.1 --port "$port" --data-parallel-size "${REPLICAS:-1}" \
    --tensor-parallel-size "${TENSOR_PARALLEL:-1}" $flags >"$log" 2>&1 &
server=$!

waited=0
until curl -sf -o /dev/null "http://127.0.0.1:$port/v1/models"; do
    if ! kill -0 "$server" 2>/dev/null; then
        echo "the server ended; see $log" >&2
        exit 1
    fi
    if ((waited >= start_seconds)); then
        echo "no answer on port $port after $start_seconds s; see $log" >&2
        exit 1
    fi
    sleep 1
    waited=$((waited + 1))
done

export CAI_SERVER=http://127.0.0.1:$port/v1
echo "serving at $CAI_SERVER" >&2
if [ $# -gt 0 ]; then
    "$@"
else
    wait
fi
