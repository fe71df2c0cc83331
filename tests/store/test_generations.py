"""Nothing stored is lost, nothing damaged is believed: truncation at every byte, wrong bits and types, two writers,
SIGKILL, a full disk.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT
from doubles import Drill, Hashed
from unreadable import make_unreadable

from spatial_eval.cli import store as cli_store
from spatial_eval.core import plan
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.errors import StoreError
from spatial_eval.core.types import Cell, Experiment, Failure, Generation, Part, Pass, Places
from spatial_eval.methods.routing import AdaptVis, Base
from spatial_eval.passes import tables as pass_tables
from spatial_eval.passes.pass_state import inspect_pass, run_pass
from spatial_eval.store.generations import (
    EXPECTED,
    AppendOnlyFile,
    Cost,
    Damaged,
    Environment,
    ExperimentKey,
    Store,
    StoredRecord,
    check_answer,
    experiment_key,
    parse_arm,
    read_lines,
    sample_digests,
)

TRUNK = Experiment(Drill(size=4), Hashed())
WORK = Pass(TRUNK, ((Part("all"), (Arm(0.5), BASE, Arm(1.5))),))
CELLS = [Cell(TRUNK, Base(), Part("all")), Cell(TRUNK, AdaptVis(0.5, 1.5, 0.5), Part("all"))]


def finish(where: Places) -> None:
    run_pass(inspect_pass(WORK, where), where)


def tables(where: Places) -> tuple[bytes, ...]:
    """The derived files that must be equal byte for byte."""
    jobs = {TRUNK: inspect_pass(WORK, where)}
    pass_tables.write_results(where.output / "sweep", pass_tables.build_results(CELLS, jobs, where), {})
    names = ("results.csv", "by_relation.csv", "samples.parquet")
    return tuple((where.output / "sweep" / name).read_bytes() for name in names)


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return Places(tmp_path, tmp_path / "out")


@pytest.fixture
def stored(where: Places) -> Path:
    """The one file of records of a finished run."""
    finish(where)
    (path,) = where.output.glob("generations/*/*.jsonl")
    return path


def test_truncated_at_every_byte_it_resumes_to_the_same_tables(where: Places, stored: Path, tmp_path: Path) -> None:
    whole, expected = stored.read_bytes(), tables(where)
    job = inspect_pass(WORK, where)
    store, answers = Store(where.output / "generations"), job.stored.generations
    for size in range(len(whole) + 1):
        stored.write_bytes(whole[:size])
        found = store.read(job.key, job.digests).generations
        # Only whole records are believed, and each of them is.
        assert found.items() <= answers.items()
        assert len(found) >= whole[:size].count(b'\n{"id"') - 1
        if size % 499 == 0:  # every offset was read above; finishing and the tables take longer
            finish(where)
            assert tables(where) == expected
            for extra in stored.parent.glob("*.jsonl"):
                if extra != stored:
                    extra.unlink()


def test_a_torn_manifest_is_mended_and_a_foreign_one_refused(where: Places, stored: Path) -> None:
    manifest = stored.parent / "trunk.json"
    whole = manifest.read_text()
    for size in range(len(whole) - 1):
        manifest.write_text(whole[:size])
        assert inspect_pass(WORK, where).todo == []
    manifest.write_text(whole[:9])
    stored.unlink()
    finish(where)
    assert manifest.read_text() == whole
    manifest.write_text(json.dumps(json.loads(whole) | {"max_new_tokens": 7}))
    before = sorted((p, p.read_bytes()) for p in where.output.rglob("*") if p.is_file())
    with pytest.raises(StoreError, match="describes another experiment"):
        inspect_pass(WORK, where)
    assert sorted((p, p.read_bytes()) for p in where.output.rglob("*") if p.is_file()) == before


def test_damage_in_the_middle_costs_only_its_own_lines(where: Places, stored: Path) -> None:
    lines = stored.read_bytes().split(b"\n")
    lines[3] = lines[3][:40] + b"\x00\xff" + lines[3][42:]  # not UTF-8
    lines[5] = lines[5][:30] + lines[6]  # one torn line glued to a whole one
    stored.write_bytes(b"\n".join(lines))
    assert sum(len(arms) for _, arms in inspect_pass(WORK, where).todo) == 2


def test_a_flipped_bit_anywhere_costs_its_line_and_is_never_believed(where: Places, stored: Path) -> None:
    whole, answers = stored.read_bytes(), inspect_pass(WORK, where).stored.generations
    first = [line.record for _, line in read_lines(stored) if isinstance(line, StoredRecord)]
    assert len(first) == len(answers) == 12
    for place in range(0, len(whole), 7):  # every seventh byte, each bit in turn
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        stored.write_bytes(data)
        lines = [line for _, line in read_lines(stored)]
        assert any(isinstance(line, Damaged) for line in lines), place
        assert {line.record for line in lines if isinstance(line, StoredRecord)} <= set(first)


RECORD = {"id": "0", "digest": "d", "arm": {"weight": 1.0}, "text": "Left", "tokens": [5, 1], "confidence": 0.25}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"confidence": 1.7}, "confidence=1.7 is not valid; expected a number in [0, 1]"),
        ({"confidence": -0.1}, "confidence=-0.1 is not valid; expected a number in [0, 1]"),
        ({"confidence": float("nan")}, "confidence=nan is not valid; expected a number in [0, 1]"),
        ({"confidence": "0.5"}, "confidence='0.5' is not valid; expected a number in [0, 1]"),
        ({"confidence": True}, "confidence=True is not valid; expected a number in [0, 1]"),
        ({"margin": [0.5]}, "margin=[0.5] is not valid; expected a number in [0, 1]"),
        ({"entropy": -1.0}, "entropy=-1.0 is not valid; expected a finite number >= 0"),
        ({"logit": float("inf")}, "logit=inf is not valid; expected a finite number"),
        ({"logit": 10**400}, f"logit={str(10**400)[:37]}... is not valid; expected a finite number"),
        ({"text": None}, "text=None is not valid; expected text"),
        ({"text": 7}, "text=7 is not valid; expected text"),
        ({"tokens": "51"}, "tokens='51' is not valid; expected a list of whole numbers >= 0"),
        ({"tokens": [5, -1]}, "tokens=[5, -1] is not valid; expected a list of whole numbers >= 0"),
        ({"tokens": [5, True]}, "tokens=[5, True] is not valid; expected a list of whole numbers >= 0"),
        ({"tokens": {"5": 1}}, "tokens={'5': 1} is not valid; expected a list of whole numbers >= 0"),
        ({"option_probs": {"left": 2}}, "option_probs={'left': 2} is not valid; expected numbers in [0, 1] by option"),
        ({"option_probs": [0.5]}, "option_probs=[0.5] is not valid; expected numbers in [0, 1] by option"),
        ({"batch": 0}, "batch=0 is not valid; expected a whole number >= 1"),
        ({"batch": 1.0}, "batch=1.0 is not valid; expected a whole number >= 1"),
        ({"prompt": None}, "prompt=None is not valid; expected text"),
        ({"id": 0}, "its id or digest is no text"),
        ({"digest": None}, "its id or digest is no text"),
        ({"error": "x"}, "error is no text"),  # beside a text
        ({"confidense": 0.5}, "it has the unknown field 'confidense'"),
        ({"arm": {"wieght": 0.5}}, "unknown key 'arm.wieght'"),
        ({"arm": {"weight": "0.5"}}, "arm.weight=0.5 is not valid; expected float"),
        ({"arm": {"weight": -1}}, "arm.weight=-1.0 is not valid; expected a finite number >= 0"),
        ({"arm": {"weight": 10**400}}, "is not valid; expected float"),
        ({"arm": {"noise": 1000}}, "arm.noise=1000 is not valid; nothing else of this arm reads it"),
        ({"arm": {"cutoff": 1.0}}, "arm.cutoff=1.0 is not valid; nothing else of this arm reads it"),
        ({"arm": {"scaling": "add"}}, "unknown scaling of arm 'add' (valid: multiply, "),
        ({"arm": {"scope": "all"}}, "unknown arm.scope 'all' (valid: last, text)"),
        ({"arm": [0.5]}, "arm=[0.5] is not valid; expected its fields"),
        ({"arm": None}, "arm=None is not valid; expected its fields"),
    ],
)
def test_a_field_of_a_wrong_type_or_range_is_damage(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    """In lines of earlier versions, which have no checksum."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (RECORD, RECORD | change, RECORD)) + "\n")
    (_, first), (number, line), (_, last) = read_lines(path)
    assert first == last == StoredRecord("d", Generation("0", BASE, "Left", (5, 1), 0.25))
    assert isinstance(line, Damaged)
    assert number == 2
    assert line.reason.startswith(reason) or (reason.startswith("is ") and line.reason.endswith(reason)), line.reason


NO_LINES = ["7", "[]", '"id"', "{}", "", "\0" * 40, "[" * 100_000, '{"id": "0"', '{"id": "0"}}', "\ufeff{}"]
NO_LINES += ['{"seconds": -1, "questions": 1}', '{"seconds": 1, "questions": 0.5}', '{"seconds": "1", "questions": 1}']
NO_LINES += ['{"seconds": 1e999, "questions": 1}', '{"environment": [1]}', '{"environment": {"torch": {}}}']
NO_LINES += [json.dumps(RECORD) + "}", json.dumps(RECORD) * 2]  # whole, with something behind it
NO_LINES += ['{"seconds": 1, "questions": 1, "csc": 1}', '{"crc": 1}', '{"id": "0", "crc": "1"}']


@pytest.mark.parametrize("text", NO_LINES, ids=lambda text: text[:20])
def test_what_is_no_line_of_ours_is_damage_and_never_a_traceback(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{text}\n" + json.dumps(RECORD), "utf8")
    (_, line), (_, after) = read_lines(path)
    assert isinstance(line, Damaged)
    assert isinstance(after, StoredRecord)


def test_lines_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    turned = dict(reversed(RECORD.items()))
    rows = [{"environment": {"torch": "2"}}, turned, {"questions": 3, "seconds": 2}, {"error": "no image"} | RECORD]
    del rows[3]["text"]
    path.write_text("".join(json.dumps(row) + "\r\n" for row in rows))
    assert [line for _, line in read_lines(path)] == [
        Environment({"torch": "2"}),
        StoredRecord("d", Generation("0", BASE, "Left", (5, 1), 0.25)),
        Cost(2.0, 3),
        StoredRecord("d", Failure("0", BASE, "no image")),
    ]
    assert list(read_lines(path, {"0": "another"})) == [(1, Environment({"torch": "2"})), (3, Cost(2.0, 3))]


def test_a_checksum_is_of_the_line_without_it(where: Places, stored: Path) -> None:
    for line in stored.read_text().splitlines():
        head, _, crc = line.removesuffix("}").rpartition(', "crc": ')
        assert zlib.crc32(f"{head}}}".encode()) == int(crc)
    # A later version's field is covered by the checksum and passed over.
    text = json.dumps(RECORD | {"later": 1})
    stored.write_text(f'{text[:-1]}, "crc": {zlib.crc32(text.encode())}}}')
    ((_, line),) = read_lines(stored)
    assert line == StoredRecord("d", Generation("0", BASE, "Left", (5, 1), 0.25))
    odd = json.dumps(RECORD | {"option_probs": {"left": 1, "crc": 0}})  # an option of that name, without a checksum
    stored.write_text(odd)
    ((_, line),) = read_lines(stored)
    assert isinstance(line, StoredRecord)


def test_every_field_of_an_answer_is_checked() -> None:
    assert set(EXPECTED) == {f.name for f in fields(Generation)} - {"sample_id", "arm"}
    assert check_answer({}) == "text is not there"
    assert check_answer({"text": "", "tokens": (), "confidence": 0, "margin": 1, "entropy": None, "row": "x"}) == ""
    assert check_answer({"text": "", "tokens": (0, 7), "batch": 1}) == ""
    assert check_answer({"text": "", "tokens": (-1, 7)}) != "" != check_answer({"text": "", "batch": 0})
    assert parse_arm({}) == BASE


def test_old_stores_without_checksums_are_read_unchanged(where: Places, stored: Path) -> None:
    before, text = inspect_pass(WORK, where), stored.read_text()
    old = [json.loads(line) for line in text.splitlines()]
    stored.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "crc"}) + "\n" for row in old))
    assert '"crc"' not in stored.read_text()
    assert inspect_pass(WORK, where).stored == before.stored
    assert cli_store.count_records(stored.parent).problems == ()


def test_an_answer_that_no_reader_would_take_is_stored_as_an_error(where: Places) -> None:
    job = inspect_pass(WORK, where)
    with Store(where.output / "generations").writer(job.key, job.digests, {}) as writer:
        writer.append([Generation("0", BASE, "Left", confidence=float("nan")), Generation("1", BASE, "On")], 0)
    stored = inspect_pass(WORK, where).stored
    assert set(stored.generations) == {("1", BASE)}
    assert stored.failures["0", BASE].error == (
        "the answer cannot be stored: confidence=nan is not valid; expected a number in [0, 1]"
    )


def test_duplicates_count_once_and_the_first_wins(where: Places, stored: Path) -> None:
    lines = stored.read_text().splitlines()
    copy = json.loads(lines[1]) | {"text": "Later"}
    stored.with_name("99999999T999999-later.jsonl").write_text(json.dumps(copy) + "\n" + "\n".join(lines[2:]))
    texts = {generation.text for generation in inspect_pass(WORK, where).stored.generations.values()}
    assert "Later" not in texts


def test_two_writers_at_once_lose_nothing(where: Places) -> None:
    first, second = inspect_pass(WORK, where), inspect_pass(WORK, where)
    store = Store(where.output / "generations")
    with store.writer(first.key, first.digests, {}) as one, store.writer(second.key, second.digests, {}) as two:
        for a, b in zip(
            TRUNK.model.load(TRUNK.dataset, 1, where).answer([[one] for one in first.todo]),
            reversed(first.todo),
            strict=True,
        ):
            one.append(a, 0.1)
            two.append(next(iter(TRUNK.model.load(TRUNK.dataset, 1, where).answer([[b]]))), 0.1)
    assert inspect_pass(WORK, where).todo == []
    assert len(list(where.output.glob("generations/*/*.jsonl"))) == 2


def test_a_success_wins_over_any_error(where: Places) -> None:
    job = inspect_pass(WORK, where)
    with Store(where.output / "generations").writer(job.key, job.digests, {}) as writer:
        writer.append([Failure("0", BASE, "first"), Generation("0", BASE, "Left"), Failure("0", BASE, "last")], 0)
    stored = inspect_pass(WORK, where).stored
    assert stored.generations["0", BASE].text == "Left"
    assert not stored.failures


def test_recorded_errors_are_left_alone_until_retry(where: Places) -> None:
    broken = Experiment(TRUNK.dataset, Hashed(broken=("1", "3")))
    work = Pass(broken, WORK.needs)
    run_pass(inspect_pass(work, where), where)
    again = inspect_pass(work, where)
    assert (again.todo, again.skipped, len(again.missing)) == ([], 6, 6)
    mended = Pass(Experiment(TRUNK.dataset, Hashed()), WORK.needs)
    assert [sample.id for sample, _ in inspect_pass(mended, where, retry=True).todo] == ["1", "3"]
    run_pass(inspect_pass(mended, where, retry=True), where)
    assert inspect_pass(mended, where).missing == []


def test_a_changed_question_is_computed_again_and_the_old_answer_kept(where: Places) -> None:
    samples = TRUNK.dataset.read(where)
    store, trunk_key = Store(where.output / "generations"), experiment_key(TRUNK, where)
    old, new = sample_digests(samples, ["image a"] * 4), sample_digests(samples, ["image b"] * 4)
    with store.writer(trunk_key, old, {}) as writer:
        writer.append([Generation("1", BASE, "Left")], 0)
    assert not store.read(trunk_key, new).generations
    assert store.read(trunk_key, old).generations["1", BASE].text == "Left"


def test_every_field_comes_back(where: Places) -> None:
    samples = TRUNK.dataset.read(where)
    whole = Generation(
        "2", Arm(0.8), "é\n\ud800", (5, 1), 0.1 + 0.2, 1 / 3, 0.25, 19.875, {"left": 1e-9}, "USER: ?", 4, "cuda"
    )
    store, trunk_key, digest = (
        Store(where.output / "generations"),
        experiment_key(TRUNK, where),
        sample_digests(samples, [""] * 4),
    )
    silent = Generation("3", BASE, "")
    with store.writer(trunk_key, digest, {}) as writer:
        writer.append([whole, silent], 0)
    assert list(store.read(trunk_key, digest).generations.values()) == [whole, silent]


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = ["tests/support", "tests"]
from doubles import Drill, Hashed
from spatial_eval.passes.pass_state import inspect_pass, run_pass
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.types import Experiment, Part, Pass, Places
root = Path(sys.argv[1])
work = Pass(Experiment(Drill(size=4), Hashed(pause_s=float(sys.argv[2]))), ((Part("all"), (Arm(0.5), BASE, Arm(1.5))),))
where = Places(root, root / "out")
run_pass(inspect_pass(work, where), where)
"""


def test_sigkill_in_the_middle_then_again_gives_the_same_tables(where: Places, tmp_path: Path) -> None:
    undisturbed = Places(tmp_path, tmp_path / "undisturbed")
    finish(undisturbed)
    seen = []
    for target in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), "0.05"], cwd=ROOT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if len(inspect_pass(WORK, where).stored.generations) >= 3 * target:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL  # it was running when it was struck
        seen.append(len(inspect_pass(WORK, where).stored.generations))
    assert 0 < seen[0] <= seen[1] < 12
    finish(where)
    assert tables(where) == tables(undisturbed)


def test_a_full_disk_is_one_line_and_loses_nothing(where: Places, stored: Path) -> None:
    """The limit on a file's size stands in for a full disk: the write stops in the middle of a batch."""
    before = stored.read_bytes()
    shutil.rmtree(where.output)
    code = KILLED.replace(
        "run_pass(inspect_pass",
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\nrun_pass(inspect_pass",
        1,
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(where.data), "0"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "StoreError" in done.stderr
    assert "what was stored before stays" in done.stderr
    (path,) = where.output.glob("generations/*/*.jsonl")
    kept = path.read_bytes()
    assert kept.endswith(b"\n")  # the part of the batch that did fit was cut off
    assert kept.count(b'"id"') >= 1
    assert len(before) > 1500
    finish(where)
    assert inspect_pass(WORK, where).todo == []


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_what_follows_a_write_that_stopped_begins_a_line(error, tmp_path, monkeypatch) -> None:
    with AppendOnlyFile(tmp_path, ".jsonl") as file:
        file.write([b"first\n"])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
            with pytest.raises((StoreError, KeyboardInterrupt)):
                file.write([b"lost, ", b"as a whole"])
        file.write([b"second\n"])
    assert file.path.read_bytes() == b"first\nsecond\n"


def test_a_read_only_store_is_one_line(where: Places) -> None:
    if os.geteuid() == 0:
        where.output.parent.mkdir(parents=True, exist_ok=True)
        where.output.write_text("a file where the folder should be")
    else:
        where.output.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="run the same command again"):
        finish(where)


def test_a_file_that_cannot_be_read_is_passed_over_and_computed_again(
    where: Places, stored: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, opened = tables(where), Path.open

    def reject(path: Path, *arguments: object, **named: object) -> object:
        if path == stored:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", reject)
    finish(where)
    assert tables(where) == whole
    assert caplog.messages == [f"{stored} is passed over: it cannot be read (Permission denied); make it readable"]
    with pytest.raises(StoreError, match="Permission denied"):  # where the file is what was asked for
        cli_store.count_records(stored.parent)


def test_an_experiment_in_a_private_folder_is_passed_over_and_one_that_fails_is_an_error(
    where: Places, stored: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a model that another user named otherwise, say; from Python 3.12 on Path.glob takes both for empty."""
    key = ExperimentKey("", json.loads((stored.parent / "trunk.json").read_text()))
    store = Store(where.output / "generations")
    assert store.list_writers(key) == [stored]
    with monkeypatch.context() as patch:
        make_unreadable(stored.parent, errno.EACCES, patch)
        assert store.list_writers(key) == []
        (problem,) = cli_store.count_records(stored.parent).problems[1:]
    assert caplog.messages == [
        f"{stored.parent} is passed over: it cannot be read (Permission denied); make it readable"
    ]
    assert problem == f"{stored.parent} cannot be read (Permission denied): make it readable"
    make_unreadable(stored.parent, errno.ESTALE, monkeypatch)
    with pytest.raises(StoreError, match="Stale file handle"):
        store.list_writers(key)


def test_labels_may_change_without_losing_answers(where: Places, stored: Path) -> None:
    folder = stored.parent
    folder.rename(folder.with_name("renamed--" + folder.name.rsplit("--", 1)[1]))
    assert inspect_pass(WORK, where).todo == []


def test_the_key_knows_what_changes_an_answer_and_nothing_else(where: Places) -> None:
    assert experiment_key(TRUNK, where).hash == "ddee078db664f609"
    assert experiment_key(Experiment(TRUNK.dataset, TRUNK.model, 5), where).hash != experiment_key(TRUNK, where).hash
    elsewhere = Places(Path("/elsewhere"), Path("/other"))
    assert experiment_key(TRUNK, elsewhere) == experiment_key(TRUNK, where)
    assert plan.fuse_cells(CELLS) == [WORK]
