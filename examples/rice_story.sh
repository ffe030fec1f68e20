#!/usr/bin/env bash
# From peaks of three cultivars to answers about a panel: train, evaluate, predict a cohort, then
# tables, comparisons, sites and effects of variants:
#
#     examples/rice_story.sh [OUT] [SAMPLES]
#     REFERENCE=ref.fa.gz PANEL=panel.bcf examples/rice_story.sh [OUT] [SAMPLES]
#
# Without a reference and a panel (of lines S0000, S0015 and so on) a stand-in is made on the spot:
# see simulated_panel.py. Peaks (60 bases around each CACGTG, CACGTC or GACGTG, which bZIP factors
# bind) and genes (every 9 kb, on alternating strands) are simulated. Put your own files in their
# place.
set -euo pipefail
out=${1:-rice-out}
samples=${2:-200}
mkdir -p "$out"
if [ -z "${REFERENCE:-}" ]; then
    echo "== a panel of $samples lines, made on the spot"
    python "$(dirname "$0")/simulated_panel.py" "$out/data" "$samples"
fi
reference=${REFERENCE:-$out/data/reference.fa.gz}
panel=${PANEL:-$out/data/panel.vcf.gz}
name=$(basename "$panel" .gz)
name=${name%.*}

echo "== three cultivars with peaks"
exports=()
for cultivar in S0003 S1500 S2996; do
    genomepred export consensus "$panel" --genome "$reference" --sample $cultivar --inbred \
        -o "$out/$cultivar.fa" &
    exports+=($!)
done
for export in "${exports[@]}"; do wait "$export"; done
python - "$out" <<'PYTHON'
import random
import re
import sys
from pathlib import Path

from genomepred import Genome

out, rng = Path(sys.argv[1]), random.Random(0)
rows = ["name\tgenome\tpeaks"]
for fasta in sorted(out.glob("S????.fa")):
    with Genome(fasta) as genome, open(fasta.with_suffix(".bed"), "w") as bed:
        for contig, length in genome.contigs.items():
            text = "".join("ACGTN"[code] for code in genome.codes(contig, 0, length).tolist())
            for found in re.finditer("CACGTG|CACGTC|GACGTG", text):
                start = found.start() + 3 - 30 + rng.randint(-5, 5)
                if 0 <= start <= length - 60:
                    bed.write(f"{contig}\t{start}\t{start + 60}\n")
    rows.append(f"{fasta.stem}\t{fasta.name}\t{fasta.stem}.bed")
(out / "cultivars.tsv").write_text("\n".join(rows) + "\n")
contig = next(iter(genome.contigs))
genes = [
    f"{contig}\t{start}\t{start + 3000}\tgene{k}\t0\t{'+-'[k % 2]}"
    for k, start in enumerate(range(5000, 990_000, 9000))
]
(out / "genes.bed").write_text("\n".join(genes) + "\n")
PYTHON

echo "== a model of the peaks, and how good it is where it was not trained"
chromosome=$(cut -f 1 "$out/genes.bed" | head -n 1)
held=()
for cultivar in S0003 S1500 S2996; do
    held+=(--validation "$cultivar:$chromosome:700001-850000")
    held+=(--test "$cultivar:$chromosome:850001-990000")
done
genomepred train --model motif-cnn --set kernel=8 --data "$out/cultivars.tsv" --window 60 \
    "${held[@]}" --epochs 25 --learning-rate 0.01 --batch-size 64 --name bzip --track bZIP \
    --out "$out/training"
genomepred evaluate --model "$out/training/best" --data "$out/cultivars.tsv" --window 60 \
    "${held[@]}" --out "$out/evaluation"

echo "== $samples lines of the panel"
python -c "print('\n'.join(f'S{15 * k:04d}' for k in range($samples)))" > "$out/lines.txt"
genomepred predict --genomes "$reference" --variants "$panel" --inbred \
    --samples "$out/lines.txt" \
    --model "$out/training/best" --out "$out/cohort"
genomepred verify "$out/cohort"

echo "== promoters by lines"
genomepred table "$out/cohort" --regions "$out/genes.bed" --upstream 1000 --downstream 500 \
    --stat max -o "$out/promoters.tsv"

echo "== where lines differ"
genomepred compare "$out/cohort" -o "$out/differences" --top 60
# Two groups: lines that keep the most variable site, and lines that have lost it. What else
# differs between them is linked to it.
python - "$out" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from genomepred import CohortStore

out = Path(sys.argv[1])
top = pd.read_csv(out / "differences" / "top.tsv", sep="\t").iloc[0]
with CohortStore(next((out / "cohort").glob("*.h5"))) as store:
    middle = (top.start + top.end) // 2
    rows = store.matrix(top.contig, middle, middle + 1)[:, :, 0]
    values = rows[:, rows.shape[1] // 2]  # of the site's own window
    kept = values > (values.max() + values.min()) / 2
    table = pd.DataFrame({"sample": store.samples, "site": np.where(kept, "kept", "lost")})
table.to_csv(out / "groups.tsv", sep="\t", index=False)
print(table["site"].value_counts().to_dict(), "at", top.contig, top.start, top.end)
PYTHON
genomepred compare "$out/cohort" -o "$out/groups" --samples-table "$out/groups.tsv" \
    --group site --top 60

echo "== sites of two lines of the panel, and of a cultivar with their sequences"
genomepred sites "$out/cohort/$name.h5" \
    --sample "$(head -n 1 "$out/lines.txt")" --sample "$(tail -n 1 "$out/lines.txt")" \
    --model "$out/training/best" --format narrowPeak -o "$out/sites"
genomepred predict "$out/S1500.fa" --model "$out/training/best" --out "$out/S1500"
genomepred sites "$out/S1500" --model "$out/training/best" --sequence "$out/S1500.fa" \
    -o "$out/S1500.sites.tsv"

echo "== what the panel's variants do, at sites and elsewhere"
genomepred effects --genomes "$reference" --variants "$panel" --model "$out/training/best" \
    --range 60 -o "$out/effects.tsv"
python - "$out" "$reference" <<'PYTHON'
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from genomepred import Genome

out, effects = Path(sys.argv[1]), pd.read_csv(Path(sys.argv[1]) / "effects.tsv", sep="\t")
with Genome(sys.argv[2]) as genome:
    (contig,) = genome.contigs
    text = "".join("ACGTN"[c] for c in genome.codes(contig, 0, genome.contigs[contig]).tolist())
inside = np.zeros(len(text) + 1, bool)
for found in re.finditer("CACGTG|CACGTC|GACGTG", text):
    inside[found.start() : found.end()] = True
change = effects["bZIP.range_difference"].abs()
for name, here in (("inside", inside[effects["start"]]), ("outside", ~inside[effects["start"]])):
    print(f"{name} a box: {here.sum():,} alternatives, median of the largest change within 60 "
          f"bases {change[here].median():.3f}")
PYTHON
