"""prepare dataset=...: every benchmark from every source, cut off, damaged and misaligned; then run for real."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import replicas
from conftest import ROOT, command, files_with
from filelock import FileLock
from hydra_front import COMPOSER
from replicas import Server

from spatial_eval.cli import main
from spatial_eval.prepare import http, recipes, verify
from spatial_eval.prepare.sources import COCO_IMAGE_BYTES, IMAGES, TEXT

COUNTED = ("pope_coco", "pope_aokvqa", "pope_gqa", "naturalbench", "viewspatial")  # the sets that count gold answers
SEVEN = ("controlled_a", "controlled_b", "coco_one_obj", "coco_two_obj", "vg_one_obj", "vg_two_obj", "vsr")
Prepare = Callable[..., int]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replicas.build(tmp_path_factory.mktemp("public"))


@pytest.fixture
def public(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "public"))


@pytest.fixture
def server(public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "PAUSE_S", 0.0)
    with Server(public) as running:
        for key, value in environment(running, tmp_path).items():
            monkeypatch.setenv(key, value)
        yield running
        running.shutdown()


def environment(server: Server, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_replica"}


@pytest.fixture
def prepare(server: Server, tmp_path: Path) -> Prepare:
    """`prepare("dataset=vsr", ...)` in this process: its exit code."""

    def run(*arguments: str, data: Path = tmp_path / "data") -> int:
        places = ["--data-dir", str(data), *(f"--{name}={server.url}" for name in ("coco", "drive", "github"))]
        rows = [] if "dataset.rows" in str(arguments) else ["dataset.rows=8"]
        rows += ["dataset.golds=[]"] * (arguments[0].removeprefix("dataset=") in COUNTED)
        return main.main(["prepare", arguments[0], *rows, *arguments[1:], *places])

    return run


def tree(data: Path) -> dict[str, bytes]:
    """What a run reads."""
    files = {path.relative_to(data).as_posix(): path for path in sorted(data.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(("cache/", "checksums"))}


def test_all_from_the_hub_once(prepare: Prepare, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert prepare("dataset=all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(SEVEN)
    assert {tuple(line.split()[1:]) for line in lines} == {("8", "questions", "8", "images", "ready")}
    data = tmp_path / "data"
    found = tree(data)
    assert found["vsr/zeroshot_test.jsonl"] == (server.root / "hub/cambridgeltl/vsr_zeroshot/test.jsonl").read_bytes()
    for name in replicas.WORDS:
        assert json.loads(found[replicas.ANNOTATIONS[name]]) == replicas.annotation(name)
        for row in replicas.questions(name):  # to the byte: nothing was decoded on the way
            file = replicas.file_of(name, row)
            assert found[file] == replicas.picture(replicas._seed(name, row)), file
    assert not (data / "cache" / "downloads").exists()
    # The token goes to the hub, never to the store it redirects to, nor to COCO.
    secrets = {path.split("/")[1]: secret for path, _, secret in server.moods.asked}
    assert (secrets["api"], secrets["datasets"], secrets["cdn"]) == ("Bearer hf_replica", "Bearer hf_replica", "")
    assert secrets["val2017"] == secrets["train2017"] == ""
    assert files_with(tmp_path, "hf_replica") == []

    server.moods.asked.clear()
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert prepare("dataset=all") == 0
    assert prepare("dataset=all", "--check") == 0
    assert server.moods.asked == []
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*") if path != data / "cache"} == {
        path: when for path, when in before.items() if path != data / "cache"
    }


def test_a_disk_without_room_to_unpack_is_said_before_an_archive_comes(
    prepare: Prepare, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    packed = (server.root / "coco" / "zips" / "val2017.zip").stat().st_size
    free = packed + http.SPARE_BYTES + 3 * COCO_IMAGE_BYTES  # one of its four pictures lacks room
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=free))
    assert prepare("dataset=coco_two_obj", "--coco-images", "archive") == 1
    assert "val2017.zip needs " in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*val2017.zip*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=free + COCO_IMAGE_BYTES))
    assert prepare("dataset=coco_two_obj", "--coco-images", "archive") == 0


def test_the_fake_hub_answers_as_the_real_client_expects(server: Server) -> None:
    from huggingface_hub import HfApi, get_hf_file_metadata

    info = HfApi(endpoint=server.url).dataset_info(IMAGES, files_metadata=True)
    assert info.sha == replicas.COMMIT
    lfs = next(file for file in info.siblings or [] if file.rfilename.endswith(".parquet"))
    assert lfs.lfs is not None
    assert (len(lfs.lfs.sha256), lfs.size) == (64, lfs.lfs.size)
    path = f"{server.url}/datasets/{IMAGES}/resolve/main/README.md"
    assert get_hf_file_metadata(path).size == (server.root / "hub" / IMAGES / "README.md").stat().st_size


@pytest.mark.parametrize("way", ["archive", "drive", "drive archive", "files"])
def test_every_way_leads_to_the_same_files(
    way: str, prepare: Prepare, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, output: str, quiet: bool, resume: bool) -> str:
        with urllib.request.urlopen(url) as reply:
            Path(output).write_bytes(reply.read())
        return output

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
    names = ["controlled_b", "coco_two_obj", "vsr"]
    for name in names:
        assert prepare(f"dataset={name}", data=tmp_path / "hub") == 0
        arguments = {
            "archive": ["--coco-images", "archive"],
            "drive": ["--source", "drive"],
            "drive archive": ["--source", "drive", "--coco-images", "archive"],
            "files": ["--source", "files", "--from", str(server.root / "upstream")],
        }[way]
        server.moods.asked.clear()
        assert prepare(f"dataset={name}", *arguments) == 0
        if way == "files":
            assert server.moods.asked == []
    mine, theirs = tree(tmp_path / "data"), tree(tmp_path / "hub")
    assert mine.keys() == theirs.keys()
    same = {name for name in mine if mine[name] == theirs[name] or json.loads(mine[name]) == json.loads(theirs[name])}
    assert same == mine.keys()
    assert prepare("dataset=controlled_b", "--check") == 0


def test_drive_needs_gdown_and_says_so(
    prepare: Prepare, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest):
        if name == "gdown":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert prepare("dataset=controlled_a", "--source", "drive") == 1
    assert "error: --source drive needs gdown: pip install gdown, or use --source hub" in capsys.readouterr().err


def test_what_drive_gives_instead_of_a_file_is_refused(
    prepare: Prepare, server: Server, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, output: str, quiet: bool, resume: bool) -> str | None:
        if "19KG" in url:
            Path(output).write_text("<html>Quota exceeded</html>")
            return output
        raise RuntimeError("Cannot retrieve the public link of the file.\nYou may need to change the permission")

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
    assert prepare("dataset=controlled_a", "--source", "drive") == 1
    assert capsys.readouterr().err.endswith("Cannot retrieve the public link of the file.\n")
    assert prepare("dataset=controlled_a") == 0
    for image in Path(capsys.readouterr().out and os.environ["HF_HOME"]).parent.glob("data/controlled_images/*"):
        image.unlink()
    assert prepare("dataset=controlled_a", "--source", "drive") == 1
    assert "controlled_images.tar.gz is damaged or no zip or tar archive" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["missing", "swapped"])
def test_rows_that_do_not_belong_together_are_refused(
    wrong: str, prepare: Prepare, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import datasets

    name = (
        "data/default-VG_QA_one_obj-00000-of-00001.parquet"
        if wrong == "swapped"
        else "data/VG_one_obj-test-00000-of-00001.parquet"
    )
    path = server.root / "hub" / (IMAGES if wrong == "swapped" else TEXT) / name
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "scratch"))
    chosen = [1, 0, *range(2, 8)] if wrong == "swapped" else range(7)
    table.select(chosen).to_parquet(str(path))
    assert prepare("dataset=vg_one_obj") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said
        == {
            "swapped": "error: row 0 of vg_one_obj: the question's answer is 'left', the first caption of "
            f"{IMAGES} is 'A thing 0 right of a table': they do not belong together, nothing was written",
            "missing": f"error: {TEXT} has 7 rows of VG_QA_one_obj, vg_one_obj has 8",
        }[wrong]
    )
    assert tree(tmp_path / "data") == {}


def test_a_swapped_row_on_disk_is_found(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert prepare("dataset=coco_two_obj") == 0
    path = tmp_path / "data" / "coco_qa_two_obj.json"
    notes = json.loads(path.read_text())
    path.write_text(json.dumps([notes[1], notes[0], *notes[2:]]))
    assert prepare("dataset=coco_two_obj", "--check") == 3
    assert "row 0: " in capsys.readouterr().out
    assert prepare("dataset=coco_two_obj") == 0  # known to be damaged: fetched again
    assert json.loads(path.read_text()) == notes


def test_damage_is_found_and_mended(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("controlled_a", "vsr", "cv_bench_relation"):
        assert prepare(f"dataset={name}") == 0
    data = tmp_path / "data"
    picture = data / "controlled_images" / "thing-0_left_table.jpeg"
    good = picture.read_bytes()
    picture.write_bytes(good[:-200])
    (data / "train2017" / "000000000501.jpg").unlink()
    for shown in data.glob("cache/hub/*/images/*"):
        shown.write_bytes(shown.read_bytes() + b" ")
    capsys.readouterr()
    assert [prepare(f"dataset={name}", "--check") for name in ("controlled_a", "vsr", "cv_bench_relation")] == [3] * 3
    said = capsys.readouterr().out.splitlines()
    assert "1 image is damaged: " in said[0]
    assert f"{len(good) - 200} bytes, {len(good)} were fetched" in said[0]
    assert said[1].endswith("2 images are missing")
    assert "8 images are damaged: " in said[2]
    assert said[2].endswith("is not what was prepared")
    assert [prepare(f"dataset={name}") for name in ("controlled_a", "vsr", "cv_bench_relation")] == [0] * 3
    assert picture.read_bytes() == good


def test_an_image_that_never_opened_is_said(prepare: Prepare, server: Server, capsys: pytest.CaptureFixture) -> None:
    (server.root / "coco" / "train2017" / "000000000502.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    assert prepare("dataset=vsr") == 3
    assert "1 image is damaged: " in (said := capsys.readouterr().out)
    assert "000000000502.jpg does not open: cannot identify image file" in said


@pytest.mark.long
def test_killed_while_it_fetches_the_command_goes_on(server: Server, tmp_path: Path) -> None:
    data = tmp_path / "data"
    arguments = ["prepare", "dataset=controlled_a", "dataset.rows=8", "--data-dir", str(data)]
    server.moods.slow = 0.05
    process = subprocess.Popen([sys.executable, "-m", "spatial_eval", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    pictures = data / "cache" / "downloads" / IMAGES.replace("/", "--") / replicas.COMMIT
    while not list(pictures.glob(".cache/huggingface/download/data/*.incomplete")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    server.moods.slow = 0
    server.moods.asked.clear()
    assert main.main(arguments) == 0
    readme = f"/datasets/{IMAGES}/resolve/{replicas.COMMIT}/README.md"
    assert readme not in [path for path, _, _ in server.moods.asked]  # what was whole stayed
    for row in replicas.questions("Controlled_Images_A"):
        file = replicas.file_of("Controlled_Images_A", row)
        assert (data / file).read_bytes() == replicas.picture(replicas._seed("Controlled_Images_A", row))
    assert not (data / "cache" / "downloads").exists()


def test_a_connection_that_breaks_is_taken_up_again(prepare: Prepare, server: Server, tmp_path: Path) -> None:
    file = "default-Controlled_Images_A-00000-of-00001.parquet"
    server.moods.cut = {f"/cdn/{IMAGES}/data/{file}": 20_000}
    assert prepare("dataset=controlled_a") == 0
    assert [path for path, _, _ in server.moods.asked].count(f"/cdn/{IMAGES}/data/{file}") == 2


@pytest.mark.parametrize("name", ["README.md", "data/Controlled_A-test-00000-of-00001.parquet"])
def test_the_hubs_checksum_counts(name: str, prepare: Prepare, server: Server, tmp_path: Path, capsys) -> None:
    for path in (f"/datasets/{TEXT}/resolve/{replicas.COMMIT}/{name}", f"/cdn/{TEXT}/{name}"):
        server.moods.twist.add(path)
    assert prepare("dataset=controlled_a") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {name} of {TEXT} arrived with another checksum than ")
    assert said.endswith("nothing of it was kept: run the same command again")
    assert not list((tmp_path / "data" / "cache" / "downloads").rglob(Path(name).name))
    server.moods.twist.clear()
    assert prepare("dataset=controlled_a") == 0


def test_a_download_that_was_damaged_since_is_fetched_again(prepare: Prepare, server: Server, tmp_path: Path) -> None:
    place = tmp_path / "data" / "cache" / "downloads" / TEXT.replace("/", "--") / replicas.COMMIT
    server.moods.twist.add(f"/cdn/{TEXT}/data/Controlled_A-test-00000-of-00001.parquet")
    assert prepare("dataset=controlled_a") == 1
    (place / "README.md").write_bytes(b"torn")
    server.moods.twist.clear()
    assert prepare("dataset=controlled_a") == 0


@pytest.mark.parametrize(
    ("denied", "message"),
    [
        ((401, "RepoNotFound", True), "it is not there, or is private; check the name, or set an HF_TOKEN that may"),
        ((403, "GatedRepo", True), "it asks for an agreement; give it on its page, then set HF_TOKEN"),
        ((403, "GatedRepo", False), "it asks for an agreement; give it on its page, then set HF_TOKEN"),
        ((500, "", True), "check the network and run the same command again"),
    ],
)
def test_a_repository_that_is_private_or_gated_is_one_line(denied, message, prepare: Prepare, server, capsys) -> None:
    server.moods.denied = {TEXT: denied}
    assert prepare("dataset=controlled_a") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {TEXT} cannot be fetched from {server.url}: ")
    assert message in said


def test_offline_is_one_line(prepare: Prepare, server: Server, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert prepare("dataset=controlled_a") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("HF_HUB_OFFLINE is set; unset it where there is network")
    assert server.moods.asked == []


def test_an_unknown_revision_is_one_line(prepare: Prepare, capsys) -> None:
    given = (f"dataset.repo={TEXT}", "dataset.config=Controlled_A", "dataset.revision=v9")
    assert prepare("dataset=hub", *given) == 1
    assert capsys.readouterr().err.endswith(
        f"{TEXT} cannot be fetched from {os.environ['HF_ENDPOINT']}: it has no such revision; check dataset.revision\n"
    )


def test_a_full_disk_is_said_before_anything_of_the_hub_is_fetched(
    prepare: Prepare, server: Server, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=http.SPARE_BYTES))
    assert prepare("dataset=controlled_a") == 1
    assert f"error: {TEXT} needs " in capsys.readouterr().err
    assert not [path for path, _, _ in server.moods.asked if path.startswith(("/cdn", "/datasets"))]


def test_two_processes_do_not_write_into_one_folder(prepare: Prepare, server: Server, tmp_path: Path, capsys) -> None:
    lock = FileLock(tmp_path / "data" / "cache" / "prepare.lock")
    (tmp_path / "data" / "cache").mkdir(parents=True)
    with lock:
        waiting = threading.Thread(target=prepare, args=["dataset=controlled_a"])
        waiting.start()
        deadline = time.monotonic() + 60
        while "waiting until it ends" not in capsys.readouterr().err and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.monotonic() < deadline
        assert not (tmp_path / "data" / "controlled_images").exists()
    waiting.join(60)
    assert len(list((tmp_path / "data" / "controlled_images").iterdir())) == 8


def test_cut_off_while_it_unpacks_the_command_goes_on(
    prepare: Prepare, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """As a kill: nothing cleans up after it."""

    real, written = recipes.write_atomic, []

    def replace(path: Path, content: bytes) -> None:
        if len(written) == 4:
            raise Killed
        written.append(path)
        real(path, content)

    monkeypatch.setattr(recipes, "write_atomic", replace)
    with pytest.raises(Killed):
        prepare("dataset=controlled_a")
    monkeypatch.setattr(recipes, "write_atomic", real)
    asked = len(server.moods.asked)
    assert prepare("dataset=controlled_a") == 0
    assert not [path for path, _, _ in server.moods.asked[asked:] if path.startswith("/cdn")]  # what was fetched stayed
    assert len(list((tmp_path / "data" / "controlled_images").iterdir())) == 8


def test_a_malicious_archive_is_one_line(prepare: Prepare, server: Server, tmp_path: Path, capsys) -> None:
    replicas.pack(server.root / "upstream" / "controlled_images.tar.gz", {"../../evil.jpeg": b"x"})
    assert prepare("dataset=controlled_a", "--source", "files", "--from", str(server.root / "upstream")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'../../evil.jpeg' would leave the folder: rejected, nothing was unpacked" in said
    assert not list(tmp_path.glob("evil*"))


def test_repope_is_fetched_with_the_splits_that_it_corrects(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    keys = ("dataset.split_name=all", "dataset.corrections=repope")
    assert prepare("dataset=pope_coco", *keys) == 0
    assert "pope_coco             7 questions     7 images  ready" in capsys.readouterr().out
    table = tmp_path / "data" / "pope" / "coco_repope_popular.json"
    table.write_text(table.read_text().replace("thing 3", "thing 9"))
    assert prepare("dataset=pope_coco", *keys, "--check") == 3
    assert "coco_repope_popular.json: they are of different versions" in capsys.readouterr().out
    assert prepare("dataset=pope_coco", *keys) == 0


def test_pope_of_gqa_takes_the_pictures_that_the_user_downloaded(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine").mkdir()
    replicas.pack(tmp_path / "mine" / "images.zip", {f"images/{i}.jpg": replicas.picture(i) for i in (700, 701)})
    assert prepare("dataset=pope_gqa", "dataset.split_name=popular") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "2 pictures are missing, which come in one archive: download images.zip" in said
    way = said.partition("prepare ")[2].rstrip("`").replace("FOLDER", str(tmp_path / "mine")).split()
    assert prepare(*way) == 0
    assert "pope_gqa              8 questions     8 images  ready" in capsys.readouterr().out


def test_a_path_in_a_row_is_never_copied(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import datasets

    (tmp_path / "secret.png").write_bytes(replicas.picture(1, "PNG"))
    row = {"question": "?", "answer": "x", "image": {"bytes": None, "path": str(tmp_path / "secret.png")}}
    table = datasets.Dataset.from_list([row]).cast_column("image", datasets.Image(decode=False))
    (tmp_path / "theirs").mkdir()
    table.to_parquet(str(tmp_path / "theirs" / "test.parquet"))
    assert prepare("dataset=hub", f"dataset.repo={tmp_path / 'theirs'}", "dataset.rows=1") == 1
    assert "row 0: `image` names " in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.png"))
    # pictures in files of the data set itself are its content
    (tmp_path / "folder" / "test").mkdir(parents=True)
    (tmp_path / "folder" / "test" / "a.png").write_bytes(replicas.picture(2, "PNG"))
    line = json.dumps({"file_name": "a.png", "question": "?", "answer": "x"})
    (tmp_path / "folder" / "test" / "metadata.jsonl").write_text(line + "\n")
    assert prepare("dataset=hub", f"dataset.repo={tmp_path / 'folder'}", "dataset.rows=1") == 0
    assert [path.read_bytes() for path in (tmp_path / "data").rglob("*.png")] == [replicas.picture(2, "PNG")]


def test_a_linked_checkout_is_never_written_to(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert prepare("dataset=coco_one_obj", data=tmp_path / "theirs") == 0
    next((tmp_path / "theirs" / "val2017").iterdir()).unlink()
    (tmp_path / "data").mkdir()
    for name in ("val2017", "coco_qa_one_obj.json", "prompts"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "theirs" / name)
    assert prepare("dataset=coco_one_obj") == 1
    assert "is a link to" in capsys.readouterr().err
    assert len(list((tmp_path / "theirs" / "val2017").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=vrs"], "unknown dataset to prepare 'vrs'; did you mean vsr?"),
        (["dataset=VG_QA_one_obj"], "did you mean vg_one_obj?"),
        (["dataset=hub"], "dataset.repo must be given"),
        (["dataset=vsr", "dataset.row=8"], "unknown key 'dataset.row'; did you mean dataset.rows?"),
        (["dataset=vsr", "dataset.rows="], "dataset.rows= is not valid"),
        (["dataset=hub", "dataset.repo=nobody/nothing"], "it is not there, or is private; check the name, or set"),
        (["dataset=hub", "dataset.repo=nowhere"], "is neither a folder nor a data set on the hub"),
        (["dataset=hub", f"dataset.repo={IMAGES}"], "unknown split 'test' (valid: Controlled_Images_A"),
        (["dataset=hub", f"dataset.repo={TEXT}"], f"{TEXT} cannot be read by `datasets`: Config name is missing"),
        (["dataset=vsr", "--source", "files"], "--source files takes dataset=NAME and --from PATH"),
        (["dataset=vsr", "--source", "files", "--from", "/nowhere"], "--from /nowhere has no vsr/zeroshot_test.jsonl"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], message: str, prepare: Prepare, capsys) -> None:
    assert prepare(*arguments) == 1
    *before, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert message in said
    assert all(line.endswith(" free") for line in before)  # the sizes of what was fetched until then


@pytest.mark.long
def test_all_run_end_to_end_with_a_tiny_model(prepare: Prepare, server: Server, tmp_path: Path) -> None:
    """All seven, newer ones and people's own, in one sweep that opens no connection."""
    newer = ("cv_bench_relation", "vsr_random", "threedsr")
    counted = tuple(name for name in COUNTED if name != "pope_gqa")
    for name in ("all", *newer, *counted):
        assert prepare(f"dataset={name}") == 0
    own = f"{server.root}/hub/nyu-visionx/CV-Bench"
    assert prepare("dataset=hub", f"dataset.repo={own}", "dataset.config=2D", "dataset.rows=12") == 0
    sweep = {
        "model": "tiny",
        "method": "scaling_vis",
        "max_new_tokens": 4,
        "split": "all",
        "grids": [
            {"dataset": [*SEVEN, *newer], "dataset.rows": 8},
            {"dataset": list(counted), "dataset.rows": 8, "dataset.golds": "[]"},
            {"dataset": "hub", "dataset.repo": own, "dataset.config": "2D", "dataset.name": "own"},
        ],
    }
    (tmp_path / "every.yaml").write_text(json.dumps(sweep))
    run = command("launch.py", f"output_dir={tmp_path / 'out'}", f"data_dir={tmp_path / 'data'}")
    asked = len(server.moods.asked)
    done = run(f"sweep={tmp_path / 'every.yaml'}", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1]).parent
    lines = [line.split(",") for line in (folder / "results.csv").read_text().splitlines()]
    head = {name: lines[0].index(name) for name in ("dataset", "n", "missing")}
    found = {line[head["dataset"]]: (line[head["n"]], line[head["missing"]]) for line in lines[1:]}
    labels = [f"{name}_random" if name.startswith("pope") else name for name in (*SEVEN, *newer, *counted)]
    assert found == dict.fromkeys(labels, ("8", "0")) | {"own": ("12", "0")}
    assert len(server.moods.asked) == asked
    (tmp_path / "data" / "vsr" / "zeroshot_test.jsonl").unlink()
    ((_, vsr),) = verify.list_data_benchmarks(COMPOSER, "vsr", {})
    missing = verify.glance_benchmark("vsr", vsr, tmp_path / "data")
    assert "dataset vsr: no vsr/zeroshot_test.jsonl under data_dir=" in missing.problem
    assert "run `python -m spatial_eval prepare dataset=vsr`" in missing.problem
