// Arithmetic between bases, rows of the grid and bins of a level.

/** Intervals of a map by contig, with the base at which their first row is drawn. */
export function makePlaces(facts) {
  // A row is drawn on the `step` bases centered on those it describes.
  const shift = (facts.binSize - facts.step) / 2;
  const contigs = new Map();
  facts.intervals.forEach((interval, number) => {
    if (!interval.rows) return;
    const place = { ...interval, number, origin: interval.start + shift };
    if (!contigs.has(interval.contig)) contigs.set(interval.contig, []);
    contigs.get(interval.contig).push(place);
  });
  for (const places of contigs.values()) places.sort((a, b) => a.origin - b.origin);
  return contigs;
}

/** Lowest level whose bins are a pixel wide or more. */
export function levelFor(facts, bpPerPixel) {
  let level = 0;
  while (facts.step * 2 ** level < bpPerPixel && level < 40) level++;
  return level;
}

/** Bins of each interval that meets [start, end) of a contig, at a level or the interval's top. */
export function binsWithin(facts, places, start, end, level) {
  const found = [];
  for (const place of places ?? []) {
    const first = Math.max(Math.floor((start - place.origin) / facts.step), 0);
    const last = Math.min(Math.ceil((end - place.origin) / facts.step), place.rows);
    if (first >= last) continue;
    const own = Math.min(level, place.top);
    const size = 2 ** own;
    found.push({ place, level: own, first: Math.floor(first / size), last: Math.ceil(last / size) });
  }
  return found;
}

/** Bases [start, end) that a bin is drawn on, within its contig. */
export function basesOf(facts, { place, level }, bin) {
  const size = 2 ** level;
  const start = place.origin + bin * size * facts.step;
  const end = place.origin + Math.min((bin + 1) * size, place.rows) * facts.step;
  return [Math.max(Math.floor(start), 0), Math.min(Math.floor(end), place.length)];
}

/** Row of an interval that is drawn on a base; undefined where none is. */
export function rowAt(facts, places, base) {
  for (const place of places ?? []) {
    const row = Math.floor((base - place.origin) / facts.step);
    if (row >= 0 && row < place.rows) return { place, row };
  }
  return undefined;
}
