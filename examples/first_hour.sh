#!/usr/bin/env bash
# A tour that needs nothing but this checkout (`make examples` sets up and runs it): train a small
# model on sequences made on the spot, look at it, run it and the bundled model over a phage.
set -euo pipefail
out=$(realpath -m "${1:-examples-out}")
cd "$(dirname "$0")/.."
phage=tests/data/lambda_virus.fa.gz
region='gi|9626243|ref|NC_001416.1|:1,001-3,000'
mkdir -p "$out"

echo "== a model of one's own"
genomepred data synthetic-motifs --length 8 --count 4000 --out "$out/motifs.csv"
genomepred train --model motif-cnn --data "$out/motifs.csv" --epochs 10 --out "$out/motifs"
genomepred models show "$out/motifs/best"
genomepred evaluate --model "$out/motifs/best" --data "$out/motifs.csv" --out "$out/evaluation"
DATA=$out genomepred sweep examples/sweeps/motifs.json --out "$out/sweep"

echo "== maps of a genome"
genomepred plan "$phage" --model ctcf --out "$out/maps"
genomepred predict "$phage" --model ctcf --out "$out/maps"
genomepred predict "$phage" --model "$out/motifs/best" --stride 8 --out "$out/motif-maps"
genomepred verify "$out/maps"

echo "== what they hold"
genomepred info "$out/maps/lambda_virus.h5"
genomepred query "$out/maps/lambda_virus.h5" "${region%-*}-1,100"
genomepred plot "$out/maps/lambda_virus.h5" "$region" -o "$out/region.png"
genomepred export bigwig "$out/maps/lambda_virus.h5" -o "$out/lambda.bw"
