"""The samples that a page holds: whole, escaped, within its budget, with the pictures that can be found."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import parquet_bytes
from PIL import Image

from spatial_eval.analysis import diagnostics
from spatial_eval.analysis.selection import picks
from spatial_eval.analysis.sweep_data import SweepData, read_sweep_data
from spatial_eval.core.arms import BASE
from spatial_eval.report import page as report_page
from spatial_eval.report import samples
from spatial_eval.report.figures import Thumbnails

NASTY = "</script><b>\x1b[31m\u202e \u2028<!--"


@pytest.fixture
def files(swept: Path, tmp_path: Path) -> SweepData:
    """The made-up quiz; what is written lands in another folder."""
    return replace(read_sweep_data(swept), folder=tmp_path)


def pack(files: SweepData, pictures: Thumbnails | None = None) -> dict[str, Any]:
    return dict(json.loads(samples.pack_samples(files, picks(files), pictures or Thumbnails(()))))


def test_the_page_holds_every_answer_and_what_cells_take(files: SweepData) -> None:
    data = pack(files)
    (trunk,), texts, (part,) = data["trunks"], data["texts"], files.experiments.values()
    assert [arm["label"] for arm in trunk["arms"]][:3] == ["base", "scaling_vis w=0.5", "scaling_vis w=0.8"]
    for packed, arm in zip(trunk["arms"], sorted(part.arms, key=lambda one: (one != BASE, one)), strict=True):
        rows = files.samples[files.samples["weight"] == arm.weight].sort_values("row")
        assert [texts[code] for code in packed["text"]] == list(rows["text"])
        assert [texts[code] for code in packed["said"]] == list(rows["prediction"])
        assert packed["right"] == list(rows["correct"])
    assert trunk["every"] == len(trunk["cells"]) == 66
    assert trunk["cells"][trunk["shown"] - len(trunk["arms"])]["label"].startswith("adapt_vis w1=")
    assert texts[trunk["columns"]["question"][0]].startswith("Where is the object 0?")


@pytest.mark.parametrize("cell", [0, 1, 40, 143])
def test_rows_of_a_cell_are_its_answers_and_flips(files: SweepData, cell: int) -> None:
    rows = samples.list_answers(files, cell=cell)
    assert round(100 * rows["correct"].mean(), 9) == round(files.cells["accuracy"][cell], 9)
    flips = diagnostics.count_flips(files.parts[files.keys[cell]], files.methods[cell])
    for name, frame in (("fixed", flips.fixed), ("broken", flips.broken)):
        assert list(rows[rows["flip"] == name]["sample_id"]) == list(frame["sample_id"])
        assert list(rows[rows["flip"] == name]["text"]) == list(frame["after"])


def test_the_text_of_others_cannot_leave_the_data(files: SweepData) -> None:
    nasty = files.samples.assign(question=NASTY, text=NASTY, prediction=NASTY)
    (files.folder / "results.csv").touch()  # the page says when it was written
    page = report_page.render_page(replace(files, content=parquet_bytes(nasty)))
    assert page.count("</script>") == 4
    assert "<!--" not in page
    (found,) = re.findall(r'id="samples-data">(.*?)</script>', page, flags=re.S)
    assert NASTY in json.loads(found)["texts"]
    code = (Path(samples.__file__).parent / "templates" / "samples.js").read_text("utf8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", code)


@pytest.mark.parametrize(("name", "most"), [("MAX_ROWS", 60), ("MAX_BYTES", 6000)])
def test_what_a_page_cannot_hold_lies_beside_it(files: SweepData, monkeypatch: Any, name: str, most: int) -> None:
    chosen, beside = picks(files), files.folder / "report_samples.js"
    whole = pack(files)
    assert whole["whole"]
    monkeypatch.setattr(samples, name, most)
    part = pack(files)
    assert not part["whole"]
    answers = sum(len(arm["text"]) for arm in part["trunks"][0]["arms"])
    assert 0 < (answers if name == "MAX_ROWS" else len(samples.pack_samples(files, chosen, Thumbnails(())))) <= most
    samples.write_samples(files, chosen)
    text = beside.read_text("utf8")
    assert json.loads(text.removeprefix("spatialEvalSamples(").removesuffix(");\n")) | {"small": {}} == whole
    monkeypatch.undo()
    samples.write_samples(files, chosen)
    assert not beside.exists()


def test_a_page_of_one_arm_without_base(files: SweepData) -> None:
    alone = replace(files, content=parquet_bytes(files.samples[files.samples["weight"] == 0.5]))
    (trunk,) = json.loads(samples.pack_samples(alone, [], Thumbnails(())))["trunks"]
    assert (trunk["base"], trunk["shown"], len(trunk["arms"])) == (-1, 0, 1)
    assert {i for cell in trunk["cells"] for i in cell["arm"]} == {-1}  # what they look at is not stored
    assert set(samples.list_answers(alone)["flip"]) == {""}


def test_pictures_are_addressed_from_the_page(files: SweepData, tmp_path: Path) -> None:
    name = "a b#1%?.png"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(b"")
    images = [name if row % 2 else "absent.png" for row in files.samples["row"]]
    sweep = replace(
        files, content=parquet_bytes(files.samples.assign(image=images)), folder=tmp_path / "out" / "sweeps" / "id"
    )
    data = pack(sweep, Thumbnails((tmp_path / "data",), {"quiz": "stored"}))
    (trunk,) = data["trunks"]
    absent, there = (data["texts"][code] for code in trunk["columns"]["picture"][:2])
    assert absent == ""
    assert there == "../../../data/a%20b%231%25%3F.png"
    assert (sweep.folder / unquote(there)).resolve() == tmp_path / "data" / name
    assert trunk["stored"]


def test_small_pictures_are_in_the_page_first_of_what_changed(files: SweepData, tmp_path: Path, monkeypatch) -> None:
    for row in range(40):
        Image.new("RGB", (400, 200), (row, 0, 0)).save(tmp_path / f"{row}.png")
    images = [f"{row}.png" for row in files.samples["row"]]
    sweep = replace(files, content=parquet_bytes(files.samples.assign(image=images)))
    (part,) = sweep.experiments.values()
    changed = np.zeros(len(part.questions), dtype=bool)
    for s in picks(sweep):
        changed |= part.follow(s.method).right != part.arms[BASE].right
    pictures = Thumbnails((tmp_path,))
    small = pack(sweep, pictures)["small"]
    assert set(small) == {f"{row}.png" for row in part.questions["row"]}
    assert [int(name.split(".")[0]) for name in small][: changed.sum()] == list(part.questions["row"][changed])
    data = base64.b64decode(next(iter(small.values())).partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (160, 80)
    monkeypatch.setattr(samples, "MAX_PICTURES", 5)
    assert len(pack(sweep, pictures)["small"]) <= 5
    whole = len(samples.pack_samples(sweep, picks(sweep), pictures).encode())
    monkeypatch.setattr(samples, "MAX_PICTURES", 300)
    monkeypatch.setattr(samples, "MAX_BYTES", whole)
    assert len(samples.pack_samples(sweep, picks(sweep), pictures).encode()) <= whole
    assert not pack(sweep)["small"]  # files that are absent have none
