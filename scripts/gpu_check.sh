#!/usr/bin/env bash
# Tests, measures and trains on a GPU in seven minutes at most: scripts/gpu_check.sh [--dry]
# --dry tries every line on a CPU with small sizes. PYTHON names the interpreter, OUT the folder of the report
# (default: outputs/gpu_check). A part that fails does not stop the others; then the exit code is 1. A part has at most
# what is left of SECONDS_AT_MOST (default: 420).
set -u
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
OUT=${OUT:-outputs/gpu_check}
SECONDS_AT_MOST=${SECONDS_AT_MOST:-420}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
export OUT PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

dry=0
small=()
bench=(--device cuda)
case "${1:-}" in
    "") ;;
    --dry)
        dry=1
        small=(trainer.device=cpu trainer.threads=1 trainer.max_steps=20 trainer.val_every=20 optim.warmup_steps=5
            data.batch_size=4 model.d_model=32 model.num_heads=4 model.d_ff=64)
        bench=(--device cpu --quick)
        export SWITCH_LM_TEST_DEVICE=cpu
        ;;
    *)
        echo "usage: scripts/gpu_check.sh [--dry]" >&2
        exit 2
        ;;
esac

# What an earlier check left; a folder of that name cannot be trained into again.
rm -rf "$OUT/logs" "$OUT/runs" "$OUT/start.json" "$OUT/gpu_bench.json" "$OUT/report.md" "$OUT/gpu_check.tar.gz"
mkdir -p "$OUT/logs"
printf 'part\texit\tseconds\n' >"$OUT/parts.tsv"
failed=0

# part NAME SECONDS COMMAND...: under a timeout, with a log of its own.
part() {
    local name=$1 limit=$2 start=$EPOCHREALTIME code seconds left=$((SECONDS_AT_MOST - SECONDS))
    shift 2
    left=$((left > 1 ? left : 1))
    limit=$((limit < left ? limit : left))
    echo "== $name (at most $limit s)"
    timeout --kill-after=2 "$limit" "$@" >"$OUT/logs/$name.log" 2>&1
    code=$?
    seconds=$(((${EPOCHREALTIME/[.,]/} - ${start/[.,]/}) / 100000))
    printf '%s\t%s\t%s.%s\n' "$name" "$code" "$((seconds / 10))" "$((seconds % 10))" >>"$OUT/parts.tsv"
    tail -n 3 "$OUT/logs/$name.log"
    if [ "$code" -ne 0 ]; then
        echo "-- $name: exit code $code"
        failed=1
    fi
}

# facts: one a line, as "name: value".
facts() {
    local sha
    sha=${SWITCH_LM_COMMIT:-$(git rev-parse HEAD 2>/dev/null)}
    echo "date: $(date -u +%Y-%m-%d)"
    echo "commit: ${sha:-unknown}"
    echo "dry run: $([ "$1" = 1 ] && echo yes || echo no)"
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1 |
            awk -F', ' '{ print "card: " $1 "\ndriver: " $2 "\nmemory: " $3 }'
    else
        echo "card: none (no nvidia-smi)"
    fi
    echo "cores: $(nproc)"
    "$PYTHON" -c 'import platform, torch; print(f"python: {platform.python_version()}")
print(f"torch: {torch.__version__}"); print(f"CUDA of torch: {torch.version.cuda}")'
}
export -f facts
export PYTHON

# gpu_run: experiment=gpu, where it exists.
gpu_run() {
    if [ ! -f configs/experiment/gpu.yaml ]; then
        echo "configs/experiment/gpu.yaml is missing: there is no run of that recipe"
        return 1
    fi
    "$PYTHON" -m switch_lm.train experiment=gpu name=gpu "outputs=$OUT" "$@"
}
export -f gpu_run

part facts 30 bash -c 'facts "$@"' facts "$dry"
part tests 110 "$PYTHON" -m pytest tests/gpu -m gpu -q -n 6 --maxfail=8 -p no:cacheprovider -p no:benchmark
part default 90 "$PYTHON" -m switch_lm.train name=default "outputs=$OUT" ${small[@]+"${small[@]}"}
part check_default 60 "$PYTHON" -m switch_lm.check --run "$OUT/runs/default"
part bench 110 "$PYTHON" scripts/bench/gpu.py "${bench[@]}"
part gpu 150 bash -c 'gpu_run "$@"' gpu ${small[@]+"${small[@]}"}
part check_gpu 60 "$PYTHON" -m switch_lm.check --run "$OUT/runs/gpu"

"$PYTHON" scripts/bench/gpu_report.py "$OUT" || failed=1
shopt -s nullglob
kept=("$OUT"/logs/*.log "$OUT"/runs/*/result.json "$OUT"/runs/*/metrics.jsonl)
# What is not in the archive, the report, the benchmark or the seconds of the parts is removed: checkpoints are large.
if tar -C "$OUT" -czf "$OUT/gpu_check.tar.gz" "${kept[@]#"$OUT"/}"; then
    rm -rf "$OUT/logs" "$OUT/runs" "$OUT/start.json"
else
    failed=1
fi
echo "the report is $OUT/report.md"
exit "$failed"
