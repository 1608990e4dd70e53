"""`metricseg explain`: source segments found again, pages that say what the network retrieved, and a folder that is kept."""

import importlib.util
import json
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("lightning")
import torch
import torch.nn.functional as F
from PIL import Image

from metricseg.cli import main
from metricseg.models import read_bank
from metricseg.training.retrieval import find_segments
from metricseg.visualization.explain import writer
from metricseg.visualization.explain.folder import ExplanationFolder
from metricseg.visualization.explain.outlines import UNITS, outline

QUICK = [
    "--config=segsort_scenes", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.limit_val_batches=0",
    "--model.model.backbone=mobilenetv3_small_050", "--model.model.channels=16", "--model.model.decoder_channels=16",
    "--data.dataset.length=5", "--data.dataset.size=64", "--data.crop=[64,64]", "--data.batch_size=4",
    "--data.eval_batch_size=2", "--embedding.pictures=0",
]  # fmt: skip
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LACKING = [
    *([] if importlib.util.find_spec("selenium") else ["selenium"]),
    *([] if BROWSER else ["chromium"]),
    *([] if shutil.which("chromedriver") else ["chromedriver"]),
]


def explain(run, out, *options):
    checkpoint = [f"--ckpt_path={run}/checkpoints/last.ckpt", f"--bank={run}/bank.safetensors"]
    return main(["explain", *QUICK, *checkpoint, f"--out={out}", *options])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of one step, with a bank."""
    folder = tmp_path_factory.mktemp("run")
    main(["fit", *QUICK, f"--trainer.default_root_dir={folder}"])
    main(["bank", *QUICK, f"--ckpt_path={folder}/checkpoints/last.ckpt", f"--out={folder}/bank.safetensors"])
    return folder


@pytest.fixture(scope="module")
def explained(run):
    """(command line, folder) of an explanation of three pictures."""
    return explain(run, run / "explained", "--pictures=3"), run / "explained"


def test_source_segments_are_those_of_the_rows(explained):
    """The mean direction of the pixels of each is its row, and they have the label of the row alone."""
    cli, folder = explained
    network, data, rows = cli.model.model, cli.datamodule, read_bank(folder.parent / "bank.safetensors").rows
    found = {number: segments for number, segments in find_segments(network, cli.trainer, data, range(5))}
    assert [segment.row for number in range(5) for segment in found[number]] == list(range(len(rows.labels)))
    assert len(rows.labels) > 5 * 7  # more than a segment a class
    training, chosen, _ = data.bank_pictures()
    loader = iter(data.bank_dataloader(training, chosen))
    for first in range(0, 5, 2):
        images, labels = next(loader)
        with torch.no_grad():
            images = images.contiguous(memory_format=torch.channels_last)
            embedding = network.outputs(images, ("embedding",))["embedding"]
        units = F.normalize(embedding.double())
        small = F.interpolate(labels[:, None].as_subclass(torch.Tensor).float(), embedding.shape[-2:])[:, 0]
        for k in range(len(images)):
            taken = torch.zeros(embedding.shape[-2:], dtype=torch.int64)
            for row, mask, distance in found[first + k]:
                assert distance == 0 and rows.images[row] == first + k
                assert (small[k][mask] == rows.labels[row]).all()
                mean = F.normalize(units[k][:, mask].mean(1), dim=0)
                torch.testing.assert_close(mean.float(), rows.prototypes[row])
                taken += mask
            assert taken.max() == 1


def test_segments_of_another_bank_are_refused(explained, run, tmp_path, monkeypatch):
    cli, out = explained[0], tmp_path / "out"
    bank = cli.model.model.bank
    monkeypatch.setattr(bank, "names", (*bank.names[:3], "train 4", "train 4"))
    with pytest.raises(ValueError, match="was built from other training pictures: it has 'train 4' for 'train 3'"):
        next(find_segments(cli.model.model, cli.trainer, cli.datamodule, [0]))
    with pytest.raises(ValueError, match=r"bank\.safetensors was built with other weights, or another clustering"):
        explain(run, out, "--model.model.iterations=3")
    with pytest.raises(ValueError, match=r"built in precision 32-true: --trainer\.precision 32-true finds its segm"):
        explain(run, out, "--trainer.precision=bf16-mixed")
    monkeypatch.setattr(bank, "index", object())
    with pytest.raises(ValueError, match=r"bank\.safetensors, which are not read with an index: leave out --model"):
        next(find_segments(cli.model.model, cli.trainer, cli.datamodule, [0]))
    assert not out.exists()


def page_data(folder, slug):
    return json.loads(re.search(r'id="data">(.*?)</script>', (folder / f"pictures/{slug}.html").read_text())[1])


def test_pages_say_what_was_retrieved(explained):
    cli, folder = explained
    network, rows = cli.model.model, read_bank(folder.parent / "bank.safetensors").rows
    image, truth = cli.datamodule.val_dataloader().dataset[1]
    with torch.no_grad():
        images = image[None].contiguous(memory_format=torch.channels_last)
        found = network.retrieve(network.outputs(images, ("embedding",))["embedding"])
    data, ids = page_data(folder, "val_1"), found.ids[0].repeat_interleave(4, 0).repeat_interleave(4, 1)
    areas = [(ids == k).double().mean().item() for k in range(25)]
    order = sorted((k for k in range(25) if areas[k]), key=lambda k: -areas[k])
    assert len(data["segments"]) == len(order) > 7
    for segment, k in zip(data["segments"], order, strict=True):
        assert segment["area"] == round(areas[k], 5) and segment["label"] == found.labels[k]
        assert [row for row, _ in segment["neighbors"]] == found.neighbors[k].tolist()
        kinds = [int(rows.labels[row]) for row, _ in segment["neighbors"]]
        assert {kind: n for n, kind in segment["votes"]} == {kind: kinds.count(kind) for kind in kinds}
        inside = truth[(ids == k) & (truth != 255)]
        assert segment["right"] == ((inside == found.labels[k]).double().mean().item() if len(inside) else None)
    for row, drawn in data["rows"].items():
        assert drawn["label"] == rows.labels[int(row)] and drawn["picture"] == rows.images[int(row)] and drawn["path"]
    names = contents(folder)
    assert {f"sources/{number}.jpg" for number in data["sources"]} <= names.keys()
    assert Image.open(folder / "pictures/val_1.png").width > 1000
    assert re.findall(r'<a class="card" href="(.*?)"', names["index.html"].decode()) == [
        f"pictures/val_{k}.html" for k in (0, 1, 3)
    ]


def test_interrupted_explanation_goes_on(explained, run, tmp_path, monkeypatch):
    """With the picture that was not done, to the same files."""
    drawn = []

    def stopping(explanation, *arguments):
        drawn.append(explanation.name)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return (explained[1] / f"pictures/{explanation.name.replace(' ', '_')}.png").read_bytes()

    monkeypatch.setattr(writer, "overview", stopping)
    with pytest.raises(KeyboardInterrupt):
        explain(run, tmp_path / "out", "--pictures=3")
    explain(run, tmp_path / "out", "--pictures=3")
    assert drawn == ["val 0", "val 1", "val 1", "val 3"]
    assert contents(tmp_path / "out") == contents(explained[1])


def test_only_its_own_files_are_replaced(explained, run, tmp_path):
    folder, before = tmp_path / "out", contents(explained[1])
    key = json.loads(before["explanation.json"])["key"]
    with pytest.raises(FileExistsError, match=r"explained holds an explanation; --overwrite true replaces it"):
        ExplanationFolder(explained[1], key)
    assert contents(explained[1]) == before
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"holds mine\.txt, which explain did not write; --out takes a new folder"
    ):
        explain(run, folder, "--overwrite=true")
    with pytest.raises(FileExistsError, match=r"--out is .*mine\.txt, a file; it takes a folder"):
        ExplanationFolder(folder / "mine.txt", key, overwrite=True)
    assert contents(folder) == {"mine.txt": b"mine"}
    shutil.copytree(explained[1], folder, dirs_exist_ok=True)
    (folder / "pictures/val_2.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"val_2\.png exists, and explain did not write it"):
        ExplanationFolder(folder, {}, overwrite=True).write({"a": b"", "pictures/val_2.png": b""})
    assert contents(folder).keys() == {"mine.txt", "pictures/val_2.png", "explanation.json"}
    (folder / "pictures/val_2.png").unlink()
    explain(run, folder, "--pictures=val 2", "--overwrite=true")
    after = contents(folder)
    assert after.pop("mine.txt") == b"mine"
    assert after.keys() == {*json.loads(after["explanation.json"])["files"], "explanation.json"}
    assert {name for name in after if name.endswith(".html")} == {"index.html", "pictures/val_2.html"}


def test_pictures_by_number_and_name():
    names = ["a/x.png", "a/y.png", "b/x.png", "a/z z.jpg"]
    assert writer.choose(names, 2) == [0, 2] and writer.choose(names, 0) == writer.choose(names, 9) == [0, 1, 2, 3]
    assert writer.choose(names, ["z z", "a/x.png"]) == [3, 0] and writer.choose(names, "x.png") == [0, 2]
    assert writer.slugs_of([*names, "X.jpg", "..png", "ä"]) == ["x", "y", "x-2", "z_z", "X-3", "picture", "picture-2"]
    with pytest.raises(ValueError, match="pictures has 'w'; the validation data has a/x.png, a/y.png, b/x.png"):
        writer.choose(names, ["w"])
    with pytest.raises(ValueError, match="pictures is -1; it takes a number >= 0"):
        writer.choose(names, -1)


def test_outlines_hold_their_cells_alone():
    """By the even-odd rule, and as SVG the same curve as in matplotlib."""
    random = np.random.default_rng(0)
    for density in (0.1, 0.5, 0.9):
        mask = random.random((13, 17)) < density
        found = outline(mask)
        curve = found.curve()
        y, x = np.mgrid[:13, :17] + 0.5
        points = np.stack([x.ravel(), y.ravel()], 1)
        polygons = curve.interpolated(1).to_polygons(closed_only=True)
        inside = sum(type(curve)(polygon).contains_points(points).astype(int) for polygon in polygons) % 2
        assert np.array_equal(inside.reshape(mask.shape) == 1, mask)
        assert mask[int(found.anchor[1]), int(found.anchor[0])]
        vertices = svg_vertices(found.path())
        np.testing.assert_array_equal(vertices / UNITS, curve.vertices)
    with pytest.raises(ValueError, match="mask has no cell"):
        outline(np.zeros((3, 3), bool))


def svg_vertices(path):
    """Start points, control points and end points of M, q and t."""
    vertices = []
    for parts in re.findall(r"M([^q]+)q([^t]+)t([^Z]*)Z", path):
        (position,), (control, step), steps = (np.array(re.findall(r"-?\d+", p), int).reshape(-1, 2) for p in parts)
        control = position + control
        vertices += [position, control, position + step]
        position = position + step
        for step in steps:
            control, position = 2 * position - control, position + step
            vertices += [control, position]
    return np.array(vertices)


@pytest.fixture
def browser():
    """Chromium without a window, which keeps a list of requests and of messages of the console."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def requests(driver):
    """The addresses that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def emulate(driver, width, height, scheme):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.mark.skipif(bool(LACKING), reason=f"a browser is needed: no {', '.join(LACKING)}")
def test_pages_in_a_browser(explained, browser):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    data, find = page_data(explained[1], "val_1"), lambda selector: browser.find_elements(By.CSS_SELECTOR, selector)

    def neighbors():
        return [int(card.get_attribute("data-row")) for card in find(".neighbor")]

    def retrieved(k):
        return [row for row, _ in data["segments"][k]["neighbors"]]

    def current():
        return [int(chip.get_attribute("data-segment")) for chip in find("#strip [aria-current=true]")]

    emulate(browser, 1300, 900, "light")
    browser.get((explained[1] / "index.html").as_uri())
    assert all(image.get_property("naturalWidth") > 0 for image in find("img")) and len(find("img")) == 3
    find(".card")[1].click()
    assert browser.title == "val 1" and neighbors() == retrieved(0) and current() == [0]

    # the cell that most erosions leave of a segment is under the pointer at its anchor
    scene, (width, height) = find("#scene")[0], data["size"]
    for k in (3, 1):
        x, y = data["segments"][k]["anchor"]
        size = scene.size
        move = ActionChains(browser).move_to_element_with_offset(
            scene, round((x / width - 0.5) * size["width"]), round((y / height - 0.5) * size["height"])
        )
        move.perform()
        assert [int(shape.get_attribute("data-segment")) for shape in find(".segment.lit")] == [k]
        assert find("#tip")[0].is_displayed()
        move.click().perform()
        assert neighbors() == retrieved(k) and current() == [k]
    assert retrieved(3) != retrieved(1)

    # arrow keys go around in either order
    for key, expected in ((Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1), (Keys.ARROW_LEFT, 0), (Keys.ARROW_LEFT, -1)):
        ActionChains(browser).send_keys(key).perform()
        expected %= len(data["segments"])
        assert current() == [expected] and neighbors() == retrieved(expected)
        assert browser.current_url.endswith(f"#segment-{expected + 1}")
    find("#order option[value=certainty]")[0].click()
    assert data["segments"][current()[0]]["certainty"] == min(s["certainty"] for s in data["segments"])

    # the whole picture of a neighbor, in a dialog that Escape closes
    find(".neighbor")[1].click()
    assert find("dialog[open] .mark")
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not find("dialog[open]")

    sizes = browser.execute_async_script("""
        const done = arguments[0], links = [...document.querySelectorAll("main image")].map((i) => i.href.baseVal);
        Promise.all(links.map((link) => new Promise((end) => {
            const image = new Image(); image.onload = image.onerror = () => end(image.naturalWidth); image.src = link;
        }))).then(done);""")
    assert len(sizes) == 17 and min(sizes) > 0  # picture, labels, 15 neighbors
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    emulate(browser, 390, 800, "dark")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != light
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert all(address.startswith(("file:", "data:")) for address in requests(browser))
    assert not browser.get_log("browser")
