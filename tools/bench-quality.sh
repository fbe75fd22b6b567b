#!/usr/bin/env bash
# How well towers, ranker and the whole path find what users took, beside popularity, item-kNN, EASE and ALS, by one
# protocol -> bench/record/quality.csv. An hour a work on two cores.
#   WORKS="demo retail kuairand"   which data; SEEDS=3 of the towers and the ranker; PEERS=no leaves the others out
#   SHARED_DATA=../shared/data     where online-retail-ii and kuairand-pure lie; the demo's data come from `make demo`
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
shared=${SHARED_DATA:-$root/../shared/data}
record=$root/bench/record/quality.csv
venv=$cache/quality
text_model=$cache/demo/text-model

"$root/tools/build.sh"

peers_python() {
    [[ -x $venv/bin/python ]] && return
    say "the peers: implicit, scipy, pandas"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        implicit==0.7.3 lightgbm==4.6.0 scipy==1.17.0 numpy==2.4.1 pandas pyarrow threadpoolctl
}

# One run of the day and its figures: NAME WORK SETTING [KEY=VALUE of the environment ...].
judged() {
    local name=$1 work=$2 setting=$3 seed
    shift 3
    for seed in $(seq "${SEEDS:-3}"); do
        say "$name, $setting, seed $seed"
        env SHORTLIST__TOWERS__SEED="$seed" SHORTLIST__OFFLINE__RANKER__SEED="$seed" \
            SHORTLIST__OFFLINE__WORK_DIR="$work" SHORTLIST__OFFLINE__RANKER__KEEP_ROWS=true "$@" \
            "$binary" --config "config/$name.toml" pipeline evaluate
        python3 bench/peers/quality_record.py --work "$work" --name "$name" --setting "$setting seed=$seed" --record "$record"
    done
}

beside_peers() {
    [[ ${PEERS:-yes} == yes ]] || return 0
    peers_python
    "$venv/bin/python" bench/peers/ranker.py --work "$2" --name "$1" --rounds 400 --record "$record"
    "$venv/bin/python" bench/peers/quality.py --work "$2" --name "$1" --seeds "${SEEDS:-3}" --record "$record"
}

with_texts=(SHORTLIST__OFFLINE__TEXT__MODEL="$text_model")
[[ -f $text_model/model.safetensors ]] || die "no model that reads titles in $text_model: run 'make demo' first"

demo() {
    [[ -f var/demo/data/.imported ]] || die "no data of the demo: run 'make demo' first"
    judged demo var/demo/work-quality texts "${with_texts[@]}" SHORTLIST__OFFLINE__TEXT__CACHE_DIR="$cache/demo/texts" \
        SHORTLIST__REGISTRY__URL=var/demo/models-quality
    beside_peers demo var/demo/work-quality
}

retail() {
    local from=$shared/online-retail-ii
    [[ -d $from ]] || die "Online Retail II is not in $from: set SHARED_DATA"
    if [[ ! -d var/retail/data ]]; then
        mkdir -p var/retail/raw
        gunzip -c "$from/events.csv.gz" >var/retail/raw/sales.csv
        cp "$from/items.csv" var/retail/raw/products.csv
        cp "$from/users.csv" var/retail/raw/customers.csv
        "$binary" --config config/retail.toml import --sql config/retail/import.sql \
            --input var/retail/raw --out var/retail/data
    fi
    judged retail var/retail/work texts "${with_texts[@]}"
    beside_peers retail var/retail/work
    # Towers that end before June judged on half a year: the items of which they have seen nothing. 30 May was a
    # holiday, so one day is not enough for the ranker.
    local half=(SHORTLIST__OFFLINE__SPLIT__TEST_DAYS=192 SHORTLIST__OFFLINE__SPLIT__RANKER_DAYS=4
        SHORTLIST__OFFLINE__SPLIT__VALIDATION_DAYS=1 SHORTLIST__OFFLINE__EVALUATE__SERVED_USERS_MAX=0)
    judged retail var/retail/work-half "half a year, texts" "${with_texts[@]}" "${half[@]}"
    judged retail var/retail/work-plain "half a year, no texts" "${half[@]}"
}

kuairand() {
    local from=$shared/kuairand-pure
    [[ -d $from ]] || die "KuaiRand-Pure is not in $from: set SHARED_DATA"
    rm -rf var/kuairand/data
    "$binary" --config config/kuairand.toml import --sql config/kuairand/import.sql --input "$from" --out var/kuairand/data
    python3 bench/peers/kuairand.py --binary "$binary" --data var/kuairand/data --work var/kuairand/work-quality \
        --seeds "${SEEDS:-3}" --record "$record"
}

for work in ${WORKS:-demo retail kuairand}; do
    case $work in
    demo | retail | kuairand) "$work" ;;
    *) die "no work '$work': demo, retail or kuairand" ;;
    esac
done
say "the figures are in $record"
