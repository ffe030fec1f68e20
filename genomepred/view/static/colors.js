// Palettes that any color vision tells apart, and the scale from values to them.

// Every 16th color of matplotlib's viridis and cividis (both CC0), and ColorBrewer's Blues, RdBu
// and PuOr (Apache 2.0).
const STOPS = {
  viridis: "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725",
  cividis: "00224e 07336f 26436e 3d4f6d 50596c 61656f 707173 7e7c77 8e8978 a09676 b3a371 c5b169 d7bf5f e8ce50 f7dd3d fee838",
  blues: "f7fbff deebf7 c6dbef 9ecae1 6baed6 4292c6 2171b5 08519c 08306b",
  "red and blue": "2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b",
  "orange and purple": "b35806 e08214 fdb863 fee0b6 f7f7f7 d8daeb b2abd2 8073ac 542788",
};
export const SEQUENTIAL = ["viridis", "cividis", "blues"];
export const DIVERGING = ["red and blue", "orange and purple"];
export const MISSING = rgba(200, 200, 200);

function rgba(r, g, b) {
  return (0xff000000 | (b << 16) | (g << 8) | r) >>> 0; // bytes of an ImageData, little-endian
}

/** 256 colors as ImageData holds them. */
export function palette(name) {
  const stops = STOPS[name].split(" ").map((hex) =>
    [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, k) => {
    const place = (k / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    const mixed = stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * (place - low)));
    return rgba(...mixed);
  });
}

/** Color of a value between two others; outside of them that of the nearer. */
export function colorOf(value, low, high, colors) {
  if (Number.isNaN(value)) return MISSING;
  const place = high > low ? Math.floor(((value - low) / (high - low)) * 256) : value >= high ? 255 : 0;
  return colors[place < 0 ? 0 : place > 255 ? 255 : place];
}

/** Bounds of a scale: those that were set, else percentiles of what is in view. */
export function bounds(histogram, values, low, high) {
  let total = 0;
  for (let code = 1; code < 256; code++) total += histogram[code];
  const at = (share) => {
    let seen = 0;
    for (let code = 1; code < 256; code++) {
      seen += histogram[code];
      if (histogram[code] && seen >= share * total) return values[code];
    }
    return 0;
  };
  const [least, most] = [low ?? at(0.01), high ?? at(0.99)];
  return least < most ? [least, most] : [least, high ?? Math.max(at(1), least)];
}

/** Bound of a scale around 0: what 99% of the differences in view do not exceed. */
export function span(differences, low, high) {
  if (low !== undefined || high !== undefined) {
    return Math.max(Math.abs(low ?? 0), Math.abs(high ?? 0));
  }
  const sizes = Float32Array.from(differences, Math.abs).sort();
  return sizes[Math.floor(0.99 * (sizes.length - 1))] || sizes.at(-1) || 1;
}
