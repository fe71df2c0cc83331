"""Small copies of what is public: the hub, COCO's server and upstream's Google Drive files, on 127.0.0.1.

Schemas: columns and files as in spatial_eval/prepare/sources.py, with its sources; that AdaptVis/all_datasets and
ServiceNow/whatsup_all are parquet files under data/ with `configs` in the README is (unverified), as is the archives'
inner folder. CV-Bench: its card, which github.com/ZTERobot/EmbodiedBrain1.0 quotes in evaluation/src/cv_bench.
3DSRBench, ViewSpatial: lmms-eval's tasks 3dsrbench and viewspatial, the authors' ViewSpatial-Bench.json. NaturalBench:
its card, BaiqiL/NaturalBench, and the authors' copies for fine-tuning. RePOPE: github.com/YanNeu/RePOPE, annotations.
The hub's answers: huggingface_hub, HfApi.dataset_info, get_hf_file_metadata and hf_raise_for_status.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tarfile
import threading
import time
import urllib.parse
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from spatial_eval.prepare.sources import IMAGES, PUBLIC, TEXT, UPSTREAMS, VSR

ROWS = 8
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WORDS = {
    "Controlled_Images_A": ("Left", "Right", "On", "Under"),
    "Controlled_Images_B": ("Left", "Right", "Front", "Behind"),
    "COCO_QA_one_obj": ("Left", "Right", "Top", "Bottom"),
    "COCO_QA_two_obj": ("Left", "Right", "Above", "Below"),
    "VG_QA_one_obj": ("Left", "Right", "Front", "Behind", "Top", "Bottom"),
    "VG_QA_two_obj": ("Left", "Right", "Front", "Behind", "Above", "Below"),
}
ANNOTATIONS = {
    "Controlled_Images_A": "controlled_images_dataset.json",
    "Controlled_Images_B": "controlled_clevr_dataset.json",
} | {name: f"{name.lower()}.json" for name in list(WORDS)[2:]}


def picture(seed: int, kind: str = "JPEG", **options: Any) -> bytes:
    """A coloured noise of 48 x 36 pixels."""
    image = Image.frombytes("RGB", (48, 36), random.Random(seed).randbytes(48 * 36 * 3))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def questions(name: str) -> list[dict[str, Any]]:
    """Rows of TEXT: COCO's images serve two questions each."""
    rows = []
    for i in range(ROWS):
        word = WORDS[name][i % len(WORDS[name])]
        asked = f"Where is the thing {i // 4} in relation to the table? Answer with {', '.join(WORDS[name]).lower()}."
        row: dict[str, Any] = {"id": i, "question": f"<image>\nUSER: {asked}\nASSISTANT:", "answer": [word]}
        if name.startswith("Controlled"):
            folder = "controlled_images" if name.endswith("A") else "controlled_clevr"
            row["image_path"] = f"data/{folder}/thing-{i // 4}_{word.lower()}_table.jpeg"
        else:
            row["image_id"] = 100 + i // 2 if name.startswith("COCO") else str(2300 + i)
        rows.append(row)
    return rows


def captions(name: str, i: int) -> list[str]:
    words = WORDS[name]
    return [f"A thing {i // 4} {words[(i + k) % len(words)].lower()} of a table" for k in range(2)]


def annotation(name: str) -> list[Any]:
    """Upstream's file."""
    rows = enumerate(questions(name))
    if name.startswith("Controlled"):
        return [{"image_path": row["image_path"], "caption_options": captions(name, i)} for i, row in rows]
    return [[row["image_id"], *captions(name, i)] for i, row in rows]


def file_of(name: str, row: dict[str, Any]) -> str:
    """Folder and name of a row's image."""
    if "image_path" in row:
        return str(row["image_path"]).removeprefix("data/")
    return f"val2017/{row['image_id']:012d}.jpg" if name.startswith("COCO") else f"vg_images/{row['image_id']}.jpg"


def statements() -> list[dict[str, Any]]:
    """Rows of VSR: two an image."""
    names = [f"{500 + i // 2:012d}.jpg" for i in range(ROWS)]
    years = ["train2017"] * (ROWS - 2) + ["val2017"] * 2  # as a few of the zero-shot test split
    links = [f"http://images.cocodataset.org/{year}/{name}" for year, name in zip(years, names, strict=True)]
    return [
        {"image": n, "image_link": links[i], "caption": f"Thing {i} is on it.", "label": i % 2, "relation": "on"}
        for i, n in enumerate(names)
    ]


def picture_path(row: dict[str, Any]) -> str:
    """Year and name of a statement's picture."""
    return urllib.parse.urlsplit(row["image_link"]).path.lstrip("/")


def build(root: Path) -> Path:
    """Writes everything under `root`: hub/ORGANISATION/NAME/, coco/, drive/ID (by Drive id), upstream/ (a checkout)."""
    import datasets

    datasets.disable_progress_bars()
    text_files, image_files = {}, {}
    for name in WORDS:
        rows = questions(name)
        text_files[UPSTREAMS[name].text] = datasets.Dataset.from_list(rows)
        shown = [
            {
                "image_options": [{"bytes": picture(_seed(name, row)), "path": None}],
                "caption_options": captions(name, i),
            }
            for i, row in enumerate(rows)
        ]
        form = datasets.Features(
            {
                "image_options": datasets.List(datasets.Image()),
                "caption_options": datasets.List(datasets.Value("string")),
            }
        )
        image_files[name] = datasets.Dataset.from_list(shown, features=form)
    _repository(root, TEXT, {config: {"test": table} for config, table in text_files.items()})
    _repository(root, IMAGES, {"default": image_files})
    for repo in VSR.values():
        folder = root / "hub" / repo
        folder.mkdir(parents=True)
        for part in ("train", "dev", "test"):
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in statements()))
    _pope(root)
    _cv_bench(root)
    build_grouped(root)
    _coco(root)
    _upstream(root)
    return root


def _seed(name: str, row: dict[str, Any]) -> int:
    return int(hashlib.md5(file_of(name, row).encode()).hexdigest()[:6], 16)


def _repository(root: Path, repo: str, configs: dict[str, dict[str, Any]]) -> None:
    folder, listed = root / "hub" / repo, []
    (folder / "data").mkdir(parents=True)
    for config, splits in configs.items():
        listed.append(f"- config_name: {config}\n  data_files:")
        for split, table in splits.items():
            path = f"data/{config}-{split}-00000-of-00001.parquet"
            table.to_parquet(str(folder / path))
            listed.append(f"  - split: {split}\n    path: data/{config}-{split}-*")
    (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(listed) + "\n---\n# A replica\n")


def _cv_bench(root: Path) -> None:
    import datasets

    rows: list[dict[str, Any]] = []
    for i in range(ROWS * 3 // 2):
        task = "Count" if i % 3 == 2 else "Relation"
        choices = ["left", "right"] if i % 2 else ["above", "below"]
        asked = f"Where is thing {i} located with respect to the table?"
        rows.append(
            {
                "idx": i,
                "type": "2D",
                "task": task,
                "image": {"bytes": picture(900 + i, "PNG"), "path": None},
                "question": asked,
                "choices": choices,
                "answer": "(B)" if i % 3 == 1 else "(A)",
                "prompt": f"{asked} Select from the following choices.\n(A) {choices[0]}\n(B) {choices[1]}",
                "source": "COCO",
            }
        )
    folder = root / "hub" / "nyu-visionx" / "CV-Bench"
    folder.mkdir(parents=True)
    deep = [{**row, "idx": 100 + row["idx"], "type": "3D", "task": "Depth", "source": "Omni3D"} for row in rows]
    rows = [{**row, "source": ("COCO", "ADE20K")[row["idx"] % 2]} for row in rows]
    for name, table in (("2d", rows), ("3d", deep)):
        datasets.Dataset.from_list(table).cast_column("image", datasets.Image()).to_parquet(
            str(folder / f"test_{name}.parquet")
        )
    listed = "\n".join(
        f'- config_name: {name}\n  data_files:\n  - split: test\n    path: "{path}"'
        for name, path in {"default": "test*.parquet", "2D": "test_2d.parquet", "3D": "test_3d.parquet"}.items()
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}\n---\n")


def views() -> list[dict[str, Any]]:
    """Rows of 3DSRBench's circular file: two sources of two and one of four options, each mirrored too."""
    rows: list[dict[str, Any]] = []
    for k, texts in enumerate((("in front", "behind"), ("above", "below"), ("front", "left", "back", "right"))):
        for flip in ("", "-flip"):
            for turn in range(len(texts)):
                turned = dict(zip("ABCD", [*texts[turn:], *texts[:turn], None, "nan"], strict=False))
                rows.append(
                    {
                        "index": len(rows),
                        "qid": f"VIEW000{k}{flip}{f'-{turn}' if turn else ''}",
                        "question": f"Where is thing {k}?",
                        **{letter: turned.get(letter) for letter in "ABCD"},
                        "answer": "ABCD"[-turn % len(texts)],
                        "category": ("location_above", "orientation_viewpoint")[len(texts) > 2],
                        "image": {"bytes": picture(500 + k + 50 * bool(flip)), "path": None},
                    }
                )
    return rows


def build_grouped(root: Path) -> None:
    """Write the repositories of 3DSRBench, NaturalBench and ViewSpatial."""
    import datasets

    def write(repo: str, tables: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
        configs: dict[str, dict[str, Any]] = {}
        for (config, split), rows in tables.items():
            table = datasets.Dataset.from_list(rows)
            for name in table.column_names:
                if name.lower() in ("image", "image_0", "image_1"):
                    table = table.cast_column(name, datasets.Image())
                if name == "images":
                    table = table.cast_column(name, datasets.List(datasets.Image()))
            configs.setdefault(config, {})[split] = table
        _repository(root, repo, configs)

    plain = [
        {**row, "index": i, "image": {"bytes": picture(500 + i), "path": None}} for i, row in enumerate(views()[:8])
    ]
    three = {("3dsr", "test"): plain, ("3dsr_circular", "test"): views()}
    write("oscarqjh/3DSRBench_lmmseval", three)
    groups = []
    for i, (yes, no, kind) in enumerate((("Yes", "No", "yes_no"), ("A", "B", "multiple_choice"))):
        options = "\nOption: A:hat; B:helmet;" if kind == "multiple_choice" else ""
        row: dict[str, Any] = {"Index": i, "Question_Type": kind, "Source": "replica"}
        for k in (0, 1):
            row[f"Image_{k}"] = {"bytes": picture(600 + 2 * i + k), "path": None}
            row[f"Question_{k}"] = f"What of thing {i} {k}?{options}"
            row |= {f"Image_{k}_Question_{k}": yes, f"Image_{k}_Question_{1 - k}": no}
        groups.append(row)
    write("BaiqiL/NaturalBench", {("default", "train"): groups})
    kinds = ("Camera perspective - Relative Direction", "Person perspective - Scene Simulation Relative Direction")
    seen = [
        {
            "question_type": kinds[i == ROWS],
            "question": f"Where is thing {i}?",
            "choices": "A. right\nB. front-up\nC. back\nD. front",
            "answer": ("A. right", "C. back")[i % 2],
            "images": [{"bytes": picture(700 + i // 2 + k), "path": None} for k in range(1 + (i == ROWS))],
        }
        for i in range(ROWS + 1)
    ]
    write("oscarqjh/ViewSpatial_lmmseval", {("default", "test"): seen})


def polls(name: str) -> list[dict[str, Any]]:
    """Rows of POPE: two pictures, four questions each; yes and no alternate."""
    form = "{}.jpg" if name.endswith("gqa") else "COCO_val2014_{:012d}.jpg"
    return [
        {
            "question_id": i + 1,
            "image": form.format(700 + i // 4),
            "text": f"Is there a thing {i} in the image?",
            "label": ("yes", "no")[i % 2],
        }
        for i in range(ROWS)
    ]


def _pope(root: Path) -> None:
    """GitHub's files lie where COCO's do: JSON lines, and indented arrays of the later sets."""
    for name, source in PUBLIC.items():
        for split in ("random", "popular", "adversarial"):
            path = root / "coco" / source.questions.format(split_name=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = polls(name)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            path.write_text(lines if name == "pope_coco" else json.dumps(rows, indent=4))
            for table in source.corrections.values():  # without the last row, and with another label of the first
                path = root / "coco" / table.format(split_name=split)
                path.parent.mkdir(parents=True, exist_ok=True)
                kept = [{**rows[0], "label": "no"}, *rows[1:-1]]
                path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def _coco(root: Path) -> None:
    wanted = {file_of(n, row): _seed(n, row) for n in WORDS if n.startswith("COCO") for row in questions(n)}
    wanted |= {picture_path(row): int(row["image"][:12]) for row in statements()}
    wanted |= {f"val2014/{row['image']}": i for i, row in enumerate(polls("pope_coco"))}
    for name, seed in wanted.items():
        path = root / "coco" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))
    (root / "coco" / "zips").mkdir()
    for year in ("val2017", "train2017", "val2014"):
        with zipfile.ZipFile(root / "coco" / "zips" / f"{year}.zip", "w") as packed:
            packed.writestr(f"{year}/", "")
            for name in wanted:
                if name.startswith(year):
                    packed.write(root / "coco" / name, name)
            packed.writestr(f"{year}/000000999999.jpg", b"nobody asks for this one")


def _upstream(root: Path) -> None:
    """The checkout's files, and the same by Drive id."""
    home, drive = root / "upstream", root / "drive"
    (home / "prompts").mkdir(parents=True)
    drive.mkdir()
    packed: dict[str, dict[str, bytes]] = {}
    for name in WORDS:
        rows = questions(name)
        count = "six" if name.startswith("VG") else "four"
        lines = [json.dumps({key: row[key] for key in ("id", "question", "answer")}) + "\n" for row in rows]
        (home / "prompts" / f"{name}_with_answer_{count}_options.jsonl").write_text("".join(lines))
        (home / ANNOTATIONS[name]).write_text(json.dumps(annotation(name)))
        (drive / UPSTREAMS[name].annotation).write_bytes((home / ANNOTATIONS[name]).read_bytes())
        content = packed.setdefault(UPSTREAMS[name].archive, {})
        content |= {file_of(name, row): picture(_seed(name, row)) for row in rows}
    for name in WORDS:
        archive = home / UPSTREAMS[name].archive
        pack(archive, packed[archive.name])
        (drive / UPSTREAMS[name].images).write_bytes(archive.read_bytes())
    (home / "vsr").mkdir()
    (home / "vsr" / "zeroshot_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in statements()))
    for year in ("train2017", "val2017", "val2014"):
        shutil.copy(root / "coco" / "zips" / f"{year}.zip", home)


def pack(archive: Path, content: dict[str, bytes], extra: Sequence[tarfile.TarInfo] = ()) -> Path:
    """A zip or tar.gz of these files; `extra` members go first."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for name, data in content.items():
                packed.writestr(name, data)
        return archive
    with tarfile.open(archive, "w:gz") as rolled:
        for info in extra:
            rolled.addfile(info)
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            rolled.addfile(info, io.BytesIO(data))
    return archive


@dataclass
class Moods:
    """How the server misbehaves; paths without their host.

    cut: the connection ends after so many bytes, once. busy: this answer (503, say) so often. slow: seconds before each
    kilobyte. twist: one byte is changed. denied: (status, the hub's error code) of repositories, and whether their list
    of files is denied too. asked: (path, Range, Authorization) of every request.
    """

    cut: dict[str, int] = field(default_factory=dict)
    busy: dict[str, list[int]] = field(default_factory=dict)
    slow: float = 0.0
    twist: set[str] = field(default_factory=set)
    denied: dict[str, tuple[int, str, bool]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    plain: bool = False  # no Range, no ETag


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.moods = root, Moods()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path)
        moods = self.server.moods
        moods.asked.append((path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
        if moods.busy.get(path):
            self._answer(moods.busy[path].pop(0), b"busy", {"Retry-After": "0"})
            return
        parts = path.strip("/").split("/")
        if path.startswith("/api/datasets/"):
            self._listing("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif path.startswith("/datasets/"):
            self._resolve("/".join(parts[1:3]), "/".join(parts[5:]), path)
        elif path.startswith("/cdn/"):
            self._file(self.server.root / "hub" / path.removeprefix("/cdn/"), path)
        elif path == "/uc":
            self._file(self.server.root / "drive" / urllib.parse.parse_qs(query)["id"][0], path)
        else:
            self._file(self.server.root / "coco" / path.lstrip("/"), path)

    def _resolve(self, repo: str, name: str, path: str) -> None:
        """A file of a repository; files in LFS lie on another host, to which the token must not go."""
        file, commit = self.server.root / "hub" / repo / name, {"X-Repo-Commit": COMMIT}
        if repo in self.server.moods.denied:
            status, code, _ = self.server.moods.denied[repo]
            self._answer(status, b"", {"X-Error-Code": code})
        elif name.endswith(".parquet"):
            data = file.read_bytes()
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            elsewhere = f"http://localhost:{self.server.server_port}/cdn/{repo}/{name}"
            self._answer(302, b"", {**commit, **linked, "Location": elsewhere})
        else:
            self._file(file, path, commit)

    def _listing(self, repo: str, revision: str) -> None:
        folder = self.server.root / "hub" / repo
        status, code, everywhere = self.server.moods.denied.get(repo, (0, "", False))
        if everywhere:
            self._answer(status, b"", {"X-Error-Code": code})
            return
        if not folder.is_dir() or revision not in ("main", COMMIT):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound" if folder.is_dir() else "RepoNotFound"})
            return
        items = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            data = file.read_bytes()
            item = {
                "rfilename": file.relative_to(folder).as_posix(),
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            if file.suffix == ".parquet":
                digest = hashlib.sha256(data).hexdigest()
                item |= {"blobId": "0" * 40, "lfs": {"sha256": digest, "size": len(data), "pointerSize": 130}}
            items.append(item)
        self._answer(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": items}).encode())

    def _file(self, file: Path, path: str, extra: dict[str, str] | None = None) -> None:
        moods = self.server.moods
        if not file.is_file():
            self._answer(404, b"")
            return
        data = file.read_bytes()
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        if path in moods.twist:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = self.headers.get("Range", "")
        headers = (extra or {}) | ({} if moods.plain else {"ETag": tag, "Accept-Ranges": "bytes"})
        if asked and not moods.plain and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._answer(206, data[start:], {**headers, "Content-Range": span}, cut=moods.cut.pop(path, None))
        else:
            self._answer(200, data, headers, cut=moods.cut.pop(path, None))

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body if cut is None else body[:cut]
        for at in range(0, len(sent), 1024):
            if self.server.moods.slow:
                time.sleep(self.server.moods.slow)
            self.wfile.write(sent[at : at + 1024])
        if cut is not None:
            self.close_connection = True
            self.connection.close()
