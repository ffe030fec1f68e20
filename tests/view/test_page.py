"""The page in a real browser: what a person does with it, and that it asks nobody else."""

from __future__ import annotations

import base64
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genomepred.sequences.grid import Geometry, Grid
from genomepred.store.scale import Scale
from tests.store_files import write_store
from tests.view.serving import Client, prepare, pyramids_made_here, serving, write_folder

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")
pytest.importorskip("uvicorn", reason="needs the extra view")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium (apt-get install chromium)"
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDTH, HEIGHT = 1000, 700


class Visit:
    """A page and what it has said and asked."""

    def __init__(self, page: Any, client: Client) -> None:
        self.page, self.origin = page, f"http://127.0.0.1:{client.port}"
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def until(self, expression: str) -> None:
        """Wait for something; ``wait_for_function`` needs what the page's policy forbids."""
        for _ in range(600):
            with suppress(playwright.Error):  # the page is just being loaded anew
                if self.page.evaluate(expression):
                    return
            time.sleep(0.05)
        raise AssertionError(f"{expression} does not hold; {self.said} {self.status()}")

    def settle(self) -> None:
        """Wait until the page is ready and heat maps fill their room."""
        fills = "genomepred.height() === genomepred.room"
        self.until(f"!window.before_ && Boolean(window.genomepred?.ready) && {fills}")

    def status(self) -> str:
        return str(self.page.inner_text("#status"))

    def set(self, **settings: Any) -> None:
        self.page.evaluate("settings => genomepred.set(settings)", settings)

    def go(self, place: str) -> None:
        assert self.page.evaluate("place => genomepred.browser.search(place)", place)

    def order(self) -> list[int]:
        return list(self.page.evaluate("[...genomepred.rows.order]"))


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    """The picture does not depend on the process that has made the pyramid."""
    with pyramids_made_here():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("page")
    return folder, write_folder(folder)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(folder, chromium) -> Iterator[Visit]:
    path, _ = folder
    more = {"genes": path / "genes.gff3", "table": path / "samples.tsv"}
    with serving(path / "panel.h5", **more) as (client, shown, _):
        prepare(shown[0])
        visit = Visit(chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}), client)
        visit.page.goto(client.url)
        visit.settle()
        yield visit
        visit.page.close()
        assert visit.said == []
        assert [
            url for url in visit.asked if not url.startswith((visit.origin, "data:", "blob:"))
        ] == []


@pytest.fixture(autouse=True)
def settled(request: pytest.FixtureRequest) -> None:
    """Every test begins at the same view."""
    if "visit" in request.fixturenames:
        visit = request.getfixturevalue("visit")
        usual = "{...(await import('/static/settings.js')).DEFAULTS, tracks: [0], map: '0'}"
        visit.page.evaluate(f"(async () => genomepred.set({usual}))()")
        visit.go("Chr1:1-400000")
        visit.settle()


def pixels(visit: Visit, track: int = 0) -> np.ndarray:
    """The screen of a heat map, uint8 [height, width, 4]."""
    script = """track => {
      const {viewports} = genomepred.browser.trackViews
        .filter(view => view.track.type === 'heatmap')[track];
      const {canvas, viewportElement} = viewports[0];
      const [x, y] = [-parseInt(canvas.style.left), -parseInt(canvas.style.top)];
      const [w, h] = [viewportElement.clientWidth, viewportElement.clientHeight];
      const {data} = canvas.getContext('2d').getImageData(x, y, w, h);
      let text = '';
      for (let k = 0; k < data.length; k += 8192) {
        text += String.fromCharCode(...data.subarray(k, k + 8192));
      }
      return {w, h, data: btoa(text)};
    }"""
    found = visit.page.evaluate(script, track)
    data = np.frombuffer(base64.b64decode(found["data"]), np.uint8)
    return data.reshape(found["h"], found["w"], 4)


def lookup(visit: Visit, name: str) -> np.ndarray:
    """A palette, uint8 [256, 4]."""
    script = "name => import('/static/colors.js').then(c => [...c.palette(name)])"
    return np.array(visit.page.evaluate(script, name), "<u4").view(np.uint8).reshape(256, 4)


def frame(visit: Visit) -> tuple[float, float]:
    script = "(f => [f.start, f.bpPerPixel])(genomepred.browser.referenceFrameList[0])"
    start, each = visit.page.evaluate(script)
    return float(start), float(each)


def binned(visit: Visit, values: np.ndarray, width: int, highest: bool) -> np.ndarray:
    """The bin of each pixel of all lines, [lines, pixels], by plain NumPy."""
    start, each = frame(visit)
    level = max(int(np.ceil(np.log2(max(each / 20, 1)))), 0)
    base = start + (np.arange(width) + 0.5) * each
    bins = ((base - 10) // 20 // (1 << level)).astype(int)
    out = np.full((len(values), width), np.nan)
    for k in np.unique(bins[(base >= 0) & (bins >= 0)]):
        part = values[:, k << level : (k + 1) << level].astype(np.float64)
        missing = np.isnan(part)
        with np.errstate(invalid="ignore"):
            mean = np.where(missing, 0, part).sum(1) / (~missing).sum(1)
        high = np.where(missing.all(1), np.nan, np.where(missing, -np.inf, part).max(1))
        out[:, bins == k] = (high if highest else mean)[:, None]
    return out


def drawn_bins(visit: Visit, folder: Any, found: np.ndarray) -> np.ndarray:
    """Means of Chr1's first track that a screen shows."""
    return binned(visit, folder[1][:, :20_000, 0], found.shape[1], False)


def quantized(values: np.ndarray, scale: Scale) -> np.ndarray:
    return scale.decode(scale.encode(values.astype(np.float32))).astype(np.float64)


def colored(values: np.ndarray, low: float, high: float, palette: np.ndarray) -> np.ndarray:
    """Colors of values, uint8 [..., 4]."""
    missing = np.isnan(values)
    place = np.floor((np.where(missing, low, values) - low) / (high - low) * 256)
    out = palette[np.clip(place, 0, 255).astype(int)]
    out[missing] = (200, 200, 200, 255)
    return out


def legend(visit: Visit) -> tuple[float, float]:
    """The scale that the picture was drawn with."""
    script = """() => {
      const t = genomepred.browser.trackViews.find(v => v.track.type === 'heatmap').track;
      return [t.drawnStyle.low, t.drawnStyle.high]; }"""
    low, high = visit.page.evaluate(script)
    return low, high


def scale_of(visit: Visit, track: int = 0) -> Scale:
    values = visit.page.evaluate("track => genomepred.facts.tracks[track].values", track)
    return Scale(np.array(values, np.float32))


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for rare means that lie on a bound between two codes."""
    off = (found != wanted).any(axis=2)
    assert off.mean() < 2e-3, (off.mean(), np.argwhere(off)[:5])


@pytest.mark.parametrize("place", ["Chr1:1-400000", "Chr1:100001-130000", "Chr1:50001-50200"])
@pytest.mark.parametrize("statistic", ["mean", "max"])
def test_pixels_are_those_of_numpy(visit: Visit, folder, place: str, statistic: str) -> None:
    visit.set(statistic=statistic, height="4")
    visit.go(place)
    found = pixels(visit)
    values = folder[1][:, :20_000, 0]
    bins = binned(visit, values, found.shape[1], statistic == "max")
    rows = quantized(bins, scale_of(visit))
    colors = colored(rows, *legend(visit), lookup(visit, "viridis"))
    drawn = np.repeat(colors, 4, axis=0)[: len(found)]
    inside = frame(visit)[0] + (np.arange(found.shape[1]) + 0.5) * frame(visit)[1] >= 10
    same(found[: len(drawn), inside], drawn[:, inside])


def test_differences_are_those_of_numpy(visit: Visit, folder) -> None:
    visit.set(show="difference", base="7", height="4")
    visit.go("Chr1:100001-130000")
    found = pixels(visit)
    bins = binned(visit, folder[1][:, :20_000, 0], found.shape[1], False)
    rows = quantized(bins, scale_of(visit))
    low, high = legend(visit)
    assert low == -high
    drawn = np.repeat(colored(rows - rows[7], low, high, lookup(visit, "red and blue")), 4, axis=0)
    same(found[: len(drawn)], drawn[: len(found)])
    assert (found[7 * 4] == found[7 * 4, 0]).all() or np.isnan(rows[7]).any()


def test_many_rows_in_a_pixel_are_their_mean(visit: Visit, folder) -> None:
    visit.page.evaluate("""() => genomepred.browser.trackViews
      .find(v => v.track.type === 'heatmap').setTrackHeight(20, true)""")
    visit.page.evaluate("genomepred.repaint()")
    found = pixels(visit)
    assert found.shape[0] == 20
    rows = quantized(
        binned(visit, folder[1][:, :20_000, 0], found.shape[1], False), scale_of(visit)
    )
    pairs = rows.reshape(20, 2, -1)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(pairs, 1) / (~np.isnan(pairs)).sum(1)
    colors = colored(mean, *legend(visit), lookup(visit, "viridis"))
    same(found[:, 1:], colors[:, 1:])
    visit.page.evaluate("genomepred.showTracks()")


def test_genes_are_jumped_to(visit: Visit) -> None:
    field = visit.page.locator(".igv-search-input")
    field.fill("loc_003")
    field.press("Enter")
    visit.until("genomepred.browser.currentLoci().startsWith('Chr1:4')")
    start, end = re.findall(r"\d+", visit.page.evaluate("genomepred.browser.currentLoci()"))[1:]
    assert int(start) <= 41_000
    assert int(end) >= 43_999
    visit.until("genomepred.settings.locus.startsWith('Chr1:4')")


def test_zoom_to_a_base(visit: Visit) -> None:
    visit.go("Chr1:50001-50040")
    found = pixels(visit)
    edges = np.flatnonzero((found[:, 1:] != found[:, :-1]).any(axis=(0, 2)))
    assert 1 <= len(edges) <= 3  # 40 bases are two or three windows of stride 20


def test_sort_and_group(visit: Visit, folder) -> None:
    visit.set(sort="column:yield")
    assert visit.order() == sorted(range(40), key=lambda k: (k * 7) % 40)
    visit.set(group="population", sort="name")
    assert visit.order() == [*range(0, 40, 2), *range(1, 40, 2)]
    found = pixels(visit)
    assert (found[0] == 255).all()  # the gap above a group
    rows = quantized(
        binned(visit, folder[1][:, :20_000, 0], found.shape[1], False), scale_of(visit)
    )
    mean = np.nanmean(rows[::2], axis=0)[None]
    same(found[8:9, 1:], colored(mean, *legend(visit), lookup(visit, "viridis"))[:, 1:])


def test_sort_by_value(visit: Visit, folder) -> None:
    visit.go("Chr1:50001-50040")
    visit.page.evaluate("genomepred.sortAt({contig: 'Chr1', base: 50020})")
    visit.until("genomepred.settings.sort === 'value'")
    values = quantized(folder[1][:, (50_020 - 10) // 20, 0], scale_of(visit))
    order = values[visit.order()]
    present = order[~np.isnan(order)]
    assert (np.diff(present) <= 0).all()
    assert np.isnan(order[len(present) :]).all()


def test_similar_rows_come_together(visit: Visit, folder) -> None:
    visit.go("Chr1:100001-102000")
    visit.set(sort="cluster")
    order = visit.order()
    assert sorted(order) == list(range(40))
    rows = np.nan_to_num(folder[1][order][:, 5000:5100, 0])
    before = np.nan_to_num(folder[1][:, 5000:5100, 0])
    assert np.abs(np.diff(rows, axis=0)).sum() < 0.7 * np.abs(np.diff(before, axis=0)).sum()


def test_found_samples_are_counted(visit: Visit) -> None:
    visit.page.fill("#find", "s1")
    visit.until("document.querySelector('#found').textContent === '10 found'")
    visit.page.fill("#find", "")


def test_several_tracks_have_their_own_scales(visit: Visit) -> None:
    visit.set(tracks=[0, 1])
    names = visit.page.evaluate("[...document.querySelectorAll('.legend b')].map(b => b.innerText)")
    assert names == ["H3K4me3", "CTCF"]
    assert (pixels(visit, 0)[5] != pixels(visit, 1)[5]).any()


def test_pictures_end_above_the_footer(visit: Visit) -> None:
    below = """(() => {
      const {viewports} = genomepred.browser.trackViews.find(v => v.track.type === 'heatmap');
      return document.getElementById('browser').getBoundingClientRect().bottom
        - viewports[0].viewportElement.getBoundingClientRect().bottom; })()"""
    assert visit.page.evaluate(below) >= 0
    for height in ("170px", ""):  # controls that wrap into more lines, and that do not
        visit.page.evaluate(f"document.getElementById('bar').style.minHeight = '{height}'")
        visit.until(f"{below} >= 0 && {below} < 80")


def test_a_click_tells_stored_values(visit: Visit, folder) -> None:
    visit.set(height="12")
    visit.go("Chr1:50001-50200")
    box = visit.page.locator(".igv-viewport").last.bounding_box()
    script = """() => {
      const r = genomepred.browser.trackViews.find(v => v.track.type === 'heatmap')
      .viewports[0].viewportElement.getBoundingClientRect(); return [r.x, r.y]; }"""
    x, y = visit.page.evaluate(script)
    assert box is not None
    visit.page.mouse.click(x + 300, y + 12 * 3 + 6)
    visit.page.locator(".igv-ui-popover").last.wait_for(timeout=20_000)
    text = visit.page.locator(".igv-ui-popover").last.inner_text()
    assert "S03" in text
    start, each = frame(visit)
    row = int((start + 300 * each - 10) // 20)
    for track, value in zip(("H3K4me3", "CTCF"), folder[1][3, row], strict=True):
        shown = re.search(rf"{track}:?\s*(\S+)", text)[1]
        assert shown == "missing" if np.isnan(value) else np.float32(shown) == value
    visit.page.mouse.click(5, 5)


def test_a_link_restores_the_view(visit: Visit, chromium) -> None:
    settings = {"show": "difference", "base": "3", "group": "population", "sort": "column:yield"}
    visit.set(tracks=[1], height="8", low=-1, high=1, find="s1", **settings)
    visit.go("Chr2:1001-5000")
    visit.until("genomepred.settings.locus.startsWith('Chr2:1')")
    visit.settle()
    before, picture = visit.page.evaluate("genomepred.settings"), pixels(visit)
    visit.page.reload()
    visit.settle()
    assert visit.page.evaluate("genomepred.settings") == before
    assert (pixels(visit) == picture).all()


def test_a_session_restores_the_view(visit: Visit, tmp_path: Path) -> None:
    visit.set(
        tracks=[1], height="8", low=-1, high=1, show="difference", base="3", group="population"
    )
    visit.go("Chr2:1001-5000")
    visit.until("genomepred.settings.locus.startsWith('Chr2:1')")
    with visit.page.expect_download(timeout=30_000) as coming:
        visit.page.click("#save")
    assert coming.value.suggested_filename == "panel_Chr2_1001-5000.json"
    coming.value.save_as(tmp_path / "s.json")
    visit.settle()
    before, picture = visit.page.evaluate("genomepred.settings"), pixels(visit)
    visit.set(tracks=[0], show="value", group="")
    visit.go("Chr1:1-3000")
    visit.page.evaluate("window.before_ = true")
    visit.page.set_input_files("#session", tmp_path / "s.json")
    visit.settle()
    assert visit.page.evaluate("genomepred.settings") == before
    assert (pixels(visit) == picture).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "this file is no session"),
        ("[1]", "this file is no session"),
        ('{"format": "genomepred view session 1", "title": "other", "view": "#"}', "of other"),
    ],
)
def test_another_file_is_no_session(visit: Visit, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    visit.page.set_input_files("#session", tmp_path / "x.json")
    visit.until(f"document.getElementById('status').textContent.includes({said!r})")


@pytest.mark.parametrize("kind", ["png", "svg", "tsv"])
def test_downloads(visit: Visit, tmp_path: Path, kind: str, folder) -> None:
    visit.set(group="population")
    visit.go("Chr1:100001-102000")
    with visit.page.expect_download(timeout=30_000) as coming:
        visit.page.click(f"#{kind}")
    coming.value.save_as(tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    assert coming.value.suggested_filename == f"panel_Chr1_100001-102000.{kind}"
    if kind == "png":
        from PIL import Image

        with Image.open(tmp_path / "x") as image:
            assert image.width > 800
            colors = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
        assert len(colors) > 50
    elif kind == "svg":
        assert data.startswith(b"<svg")
        assert b"data:image/png" in data
        assert b"a (20)" in data
    else:
        check_table(data.decode(), folder[1], scale_of(visit))


def check_table(text: str, values: np.ndarray, scale: Scale) -> None:
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines[0][:5] == ["contig", "start", "end", "track", "S00"]
    assert lines[0][5] == "S02"  # the order of the groups on screen
    assert [line[:4] for line in lines[1:3]] == [
        ["Chr1", "99990", "100010", "H3K4me3"],
        ["Chr1", "100010", "100030", "H3K4me3"],
    ]
    found = np.array([line[4:] for line in lines[1:]], np.float64)
    order = [*range(0, 40, 2), *range(1, 40, 2)]
    wanted = quantized(values[order][:, 4999 : 4999 + len(found), 0], scale)
    np.testing.assert_allclose(found, wanted.T, rtol=1e-5)


def test_keys(visit: Visit) -> None:
    visit.go("Chr1:100001-130000")
    start, each = frame(visit)
    visit.page.locator("body").press("ArrowRight")
    visit.until(f"genomepred.browser.referenceFrameList[0].start > {start}")
    visit.page.locator("body").press("+")
    visit.until(f"genomepred.browser.referenceFrameList[0].bpPerPixel < {each}")
    visit.page.locator("body").press("m")
    visit.until("genomepred.settings.statistic === 'max'")
    visit.page.locator("body").press("d")
    visit.until("genomepred.settings.show === 'difference'")
    visit.page.locator("body").press("Home")
    visit.until("genomepred.browser.currentLoci() === 'Chr1:1-400000'")
    visit.page.locator("body").press("f")
    assert visit.page.evaluate("document.activeElement.id") == "find"
    visit.page.keyboard.type("d")  # typing is no key of the page
    assert visit.page.evaluate("genomepred.settings.show") == "difference"
    visit.page.fill("#find", "")
    visit.page.locator("#find").blur()
    visit.page.locator("body").press("?")
    assert visit.page.locator("#keys").is_visible()
    visit.page.keyboard.press("Escape")


def test_unknown_places_and_menus_stay_here(visit: Visit) -> None:
    visit.page.evaluate("genomepred.browser.search('no such gene')")
    labels = visit.page.evaluate("""() => {
      const [referenceFrame] = genomepred.browser.referenceFrameList;
      return genomepred.browser.trackViews.flatMap(({track, viewports}) =>
        track.contextMenuItemList?.({viewport: viewports[0], referenceFrame, genomicLocation: 1})
          ?.map(item => String(item.label ?? '')) ?? []);
    }""")
    assert "Sort rows by value here" in labels
    assert not [label for label in labels if "BLAT" in str(label)]
    visit.page.keyboard.press("Escape")


def test_genomes_of_a_folder(tmp_path: Path, chromium) -> None:
    grid = Grid.whole({"Chr1": 20_000}, Geometry(window=100, stride=20))
    rng = np.random.default_rng(0)
    values = rng.gamma(0.5, 1, (4, grid.rows, 1)).astype(np.float32)
    (tmp_path / "run").mkdir()
    for name, rows in zip(("a", "b", "c"), values, strict=False):
        write_store(tmp_path / "run" / f"{name}.h5", grid, rows)
    write_store(tmp_path / "ref.h5", grid, values[3])
    other = Grid.whole({"scaffold": 9000}, Geometry(window=100, stride=20))
    write_store(tmp_path / "run" / "d.h5", other)
    with serving(tmp_path / "run", reference=tmp_path / "ref.h5") as (client, _, _):
        visit = Visit(chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}), client)
        visit.page.goto(client.url)
        visit.until("Boolean(window.genomepred?.ready)")
        assert visit.page.evaluate("genomepred.facts.lines") == ["a", "b", "c", "reference"]
        visit.set(show="difference")
        assert visit.page.evaluate("genomepred.base()") == 3
        visit.go("Chr1:4001-4400")
        found = pixels(visit)
        height = found.shape[0] // 4 if found.shape[0] < 128 else 32
        start, each = frame(visit)
        rows = ((start + (np.arange(found.shape[1]) + 0.5) * each - 40) // 20).astype(int)
        scale = scale_of(visit)
        drawn = quantized(values[:, :, 0], scale)[:, rows]
        colors = colored(drawn - drawn[3], *legend(visit), lookup(visit, "red and blue"))
        same(found[height // 2 : 4 * height : height], colors)
        visit.page.select_option("#map", "1")
        visit.until("window.genomepred?.ready && genomepred.facts.title === 'd'")
        assert visit.page.evaluate("genomepred.browser.currentLoci()").startswith("scaffold:1-")
        assert visit.said == []
        visit.page.close()
