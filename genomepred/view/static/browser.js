// igv.js, set up so that it asks nobody but the server this page came from.

import igv from "./igv.esm.min.js";
import { HeatMap, escaped } from "./heatmap.js";
import { address, ask } from "./server.js";

igv.registerTrackClass("heatmap", HeatMap);

const GENES_HEIGHT = 54;
const NAMES_WIDTH = 150;
const PLACE_WIDTH = "360px"; // long names of contigs, with a place

/** The browser of a map, at the place and with the tracks of the page's settings. */
export async function openBrowser(page, element) {
  const { facts, key, settings } = page;
  const browser = await igv.createBrowser(element, {
    loadDefaultGenomes: false,
    queryParametersSupported: false,
    reference: reference(page),
    locus: settings.locus || wholeContig(facts, facts.intervals[0].contig),
    search: { url: `api/search?map=${key}&name=$FEATURE$`, coords: 1 },
    showSequence: facts.sequence,
    showIdeogram: false,
    showCenterGuideButton: false,
    showTrackLabelButton: false,
    showROITableButton: false,
    showSVGButton: false,
    showSampleNameButton: false,
    showSampleNames: true,
    sampleNameViewportWidth: NAMES_WIDTH,
    showAxis: false,
    showGearColumn: false,
    showTrackDragHandles: false,
    minimumBases: 20,
  });
  hideBlat(browser);
  browser.navbar.multiTrackSelectButton.setVisibility(false);
  browser.navbar.searchInput.parentElement.style.width = PLACE_WIDTH;
  if (page.genes) suggestGenes(browser, key);
  if (page.genes) await browser.loadTrack(genesTrack(key));
  return browser;
}

function reference({ facts, key }) {
  const index = address("sequence.fa.fai", { map: key });
  const title = escaped(facts.title);
  const common = { id: title, name: title, wholeGenomeView: false };
  return facts.sequence
    ? { ...common, fastaURL: address("sequence.fa", { map: key }), indexURL: index }
    : { ...common, format: "chromsizes", fastaURL: index };
}

/** A contig from end to end, as igv.js reads it. */
export function wholeContig(facts, contig) {
  const { length } = facts.intervals.find((interval) => interval.contig === contig);
  return `${contig}:1-${length}`;
}

function genesTrack(key) {
  return {
    type: "annotation",
    name: "Genes",
    height: GENES_HEIGHT,
    displayMode: "EXPANDED",
    color: "#31688e",
    removable: false,
    searchable: false,
    visibilityWindow: -1,
    order: 1,
    reader: {
      readFeatures: async (contig, start, end) => {
        const genes = await ask("genes", {
          map: key, contig, start: Math.max(Math.floor(start), 0), end: Math.ceil(end),
        });
        return genes.map((gene) => ({ ...gene, name: escaped(gene.name) }));
      },
    },
  };
}

/** Names of genes that begin as what is typed into the field for places. */
function suggestGenes(browser, key) {
  const field = browser.navbar.searchInput;
  const list = document.createElement("datalist");
  list.id = "genes";
  field.after(list);
  field.setAttribute("list", list.id);
  field.placeholder = "Chr1:1,000-2,000 or a gene";
  let timer;
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const found = await ask("search", { map: key, name: field.value }).catch(() => []);
      list.replaceChildren(...found.map(({ gene }) => new Option(gene, gene)));
    }, 150);
  });
}

/** Its sequence track offers to send what is seen to a server far away. */
function hideBlat(browser) {
  for (const { track } of browser.trackViews) {
    if (track.type !== "sequence") continue;
    const items = track.contextMenuItemList.bind(track);
    track.contextMenuItemList = (click) =>
      items(click)?.filter((item) => !String(item.label).startsWith("BLAT"));
  }
}

/** Show heat maps of some tracks, in their order. */
export async function showTracks(page, browser, numbers, height) {
  const shown = heatMaps(browser);
  for (const number of numbers) {
    const track = shown.find((one) => one.number === number);
    if (track) {
      track.trackView.setTrackHeight(height, true);
      continue;
    }
    await browser.loadTrack({
      type: "heatmap",
      name: escaped(page.facts.tracks[number].name),
      height,
      order: 10 + number,
      removable: false,
      _page: page,
      _number: number,
    });
  }
  // Last, since igv.js gives up the column of names when there is nothing to name.
  for (const track of shown) {
    if (!numbers.includes(track.number)) browser.removeTrack(track);
  }
}

/** The heat maps that are shown. */
export function heatMaps(browser) {
  return browser.trackViews.map(({ track }) => track).filter((track) => track instanceof HeatMap);
}
