#!/bin/sh
# A first prediction with curl: a structure as 2048 bytes, one bit per pixel, row-major, 1 = solid; the spectra are JSON.
#
# Start a server with `make serve`, then: sh client/examples/first_prediction.sh [URL]
set -eu
url=${1:-http://127.0.0.1:8000}
# Stripes of 250 nm: 16 bytes per row, alternating two solid and two void.
structure=$(mktemp)
trap 'rm -f "$structure"' EXIT
i=0
while [ $i -lt 512 ]; do
    printf '\377\377\000\000'
    i=$((i + 1))
done >"$structure"
curl --fail-with-body --silent --show-error "$url/predict" --header 'Content-Type: application/octet-stream' --data-binary "@$structure"
