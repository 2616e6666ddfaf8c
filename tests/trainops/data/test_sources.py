"""What each kind of file gives, and one line for everything that can be wrong with it."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.api import Pair, RecordError, Source, Text, Tokens, where
from apt_jax.trainops.data.sources.array_record import array_record_source
from apt_jax.trainops.data.sources.auto import choose
from apt_jax.trainops.data.sources.jsonl import jsonl_source
from apt_jax.trainops.data.sources.parquet import parquet_source
from apt_jax.trainops.data.sources.text import text_source
from tests.trainops.data.samples import write_jsonl

CONFIG = DataConfig()
RECORDS = [
    {"text": "天空是蓝色的。", "id": 1},
    {"prompt": "二加二？", "completion": "四"},
    {"tokens": [5, 6, 7], "prompt_length": 1},
    {"text": "line\nbreak \u2028 and separator"},
]
DOCUMENTS = [
    Text("天空是蓝色的。"),
    Pair("二加二？", "四"),
    Tokens([5, 6, 7], 1),
    Text("line\nbreak \u2028 and separator"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def everything(source: Source) -> list:
    return [source[i] for i in range(len(source))]


def write_array_record(path: Path, payloads: list[bytes]) -> Path:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for payload in payloads:
        writer.write(payload)
    writer.close()
    return path


def write_parquet(path: Path, records: list[dict], **options) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(records), path, **options)
    return path


# --- what they give


def test_text_files_are_one_document_each(tmp_path):
    for name, content in {
        "b.txt": b"two\r\n",
        "a.md": "\ufeff一".encode(),
        ".hidden.txt": b"x",
        "c.pdf": b"x",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("three")
    source = text_source((".",), CONFIG)
    assert everything(source) == [Text("一"), Text("two\r\n"), Text("three")]
    assert where(source, 2).endswith("c.txt")


def test_paths_keep_their_order_and_come_once(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert [d.text for d in everything(text_source(("c.txt", "*.txt", "."), CONFIG))] == ["c", "a", "b"]


def test_jsonl_reads_texts_pairs_and_tokens_in_any_order(tmp_path):
    write_jsonl(tmp_path / "my.jsonl", RECORDS)
    source = jsonl_source(("my.jsonl",), CONFIG)
    assert [source[i] for i in (3, 1, 0, 2)] == [DOCUMENTS[i] for i in (3, 1, 0, 2)]
    assert isinstance(source, Source)


def test_gzipped_jsonl_is_the_same_data(tmp_path):
    plain = write_jsonl(tmp_path / "my.jsonl", RECORDS)
    (tmp_path / "my.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    packed = jsonl_source(("my.jsonl.gz",), CONFIG)
    assert [packed[i] for i in (3, 1, 0, 2)] == [DOCUMENTS[i] for i in (3, 1, 0, 2)]
    assert packed.fingerprint == jsonl_source(("my.jsonl",), CONFIG).fingerprint


def test_field_names_can_be_chosen(tmp_path):
    write_jsonl(tmp_path / "my.jsonl", [{"body": "a"}, {"q": "b", "a": "c"}])
    config = DataConfig(text_field="body", prompt_field="q", completion_field="a")
    assert everything(jsonl_source(("my.jsonl",), config)) == [Text("a"), Pair("b", "c")]


LINES = st.lists(
    st.one_of(
        st.sampled_from([b"", b"  ", b"\t\r"]),
        st.text(max_size=30).map(lambda t: json.dumps({"text": t}).encode()),
    ),
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans())
def test_lines_are_found_whatever_lies_between_them(tmp_path_factory, lines, end, last, mark):
    path = tmp_path_factory.mktemp("lines") / "my.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + end.join(lines) + (end if last else b""))
    expected = [(i, json.loads(line)["text"]) for i, line in enumerate(lines, 1) if line.strip()]
    if not expected:
        with pytest.raises(DataError, match=r"empty|blank"):
            jsonl_source((str(path),), CONFIG)
        return
    source = jsonl_source((str(path),), CONFIG)
    found = [(int(where(source, i).rpartition(":")[2]), source[i]) for i in range(len(source))]
    assert found == [(number, Text(text)) for number, text in expected]


def test_parquet_reads_rows_over_files_and_row_groups(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"text": f"a{i}", "other": i} for i in range(5)], row_group_size=2)
    write_parquet(tmp_path / "b.parquet", [{"prompt": "p", "completion": "c", "text": None}])
    source = parquet_source((".",), CONFIG)
    assert [source[i] for i in (4, 0, 5, 2)] == [Text("a4"), Text("a0"), Pair("p", "c"), Text("a2")]
    assert where(source, 4) == "a.parquet: row 5"
    assert where(source, 5) == "b.parquet: row 1"


def test_array_record_reads_json_and_plain_texts(tmp_path):
    payloads = [json.dumps(r, ensure_ascii=False).encode() for r in RECORDS]
    write_array_record(tmp_path / "a.array_record", payloads[:2])
    write_array_record(tmp_path / "b.array_record", [*payloads[2:], "纯文本".encode(), b"{not json"])
    source = array_record_source((".",), CONFIG)
    assert everything(source) == [*DOCUMENTS, Text("纯文本"), Text("{not json")]
    assert where(source, 3) == "b.array_record: record 2"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.txt", "text"), ("A.MD", "text"), ("a.jsonl", "jsonl"), ("a.ndjson", "jsonl"),
     ("a.jsonl.gz", "jsonl"), ("a.parquet", "parquet"), ("a.array_record", "array_record")],
)  # fmt: skip
def test_auto_goes_by_file_name(tmp_path, name, kind):
    (tmp_path / name).write_text("x")
    assert choose((name,)) == kind
    assert choose((str(tmp_path),)) == kind
    assert choose((f"*{Path(name).suffix}",)) == kind


# --- fingerprints


def test_fingerprints_tell_content_order_and_fields_but_not_names(tmp_path):
    def of(names, config=CONFIG):
        return jsonl_source(tuple(names), config).fingerprint

    write_jsonl(tmp_path / "a.jsonl", [{"text": "1"}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "2"}])
    write_jsonl(tmp_path / "copy.jsonl", [{"text": "1"}])
    assert of(["a.jsonl"]) == of(["copy.jsonl"])
    other = [of(["b.jsonl"]), of(["a.jsonl", "b.jsonl"]), of(["b.jsonl", "a.jsonl"]),
             of(["a.jsonl"], DataConfig(text_field="t"))]  # fmt: skip
    assert len({of(["a.jsonl"]), *other}) == 5


# --- what can be wrong with files


def bad_files(folder: Path) -> None:
    (folder / "empty.jsonl").touch()
    (folder / "blank.jsonl").write_text("\n\n  \n")
    (folder / "binary.jsonl").write_bytes(b"PK\x03\x04\x00\x00")
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    (folder / "fake.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    (folder / "fake.parquet").write_text("not parquet")
    (folder / "fake.array_record").write_text("not riegeli" * 100)
    (folder / "notes.pdf").write_text("x")
    (folder / "none").mkdir()
    (folder / "none" / "x.pdf").write_text("x")
    (folder / "mixed").mkdir()
    (folder / "mixed" / "a.txt").write_text("x")
    (folder / "mixed" / "b.jsonl").write_text("{}")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), r"^data.path is empty: give files, e.g. --config.data.path=my.jsonl$"),
        (("gone.jsonl",), r"^gone.jsonl: no such file or folder; check data.path \(you are in .*\)$"),
        (("gone/*.jsonl",), r"^gone/\*.jsonl: no file matches; check data.path$"),
        (("empty.jsonl",), r"^empty.jsonl: is empty; remove it from data.path or fill it$"),
        (("blank.jsonl",), r"^blank.jsonl: holds only blank lines; fill it or remove it from data.path$"),
        (
            ("binary.jsonl",),
            r"^binary.jsonl: is not a JSON Lines file \(holds zero bytes\); take it out of data",
        ),
        (("cut.jsonl.gz",), r"^cut.jsonl.gz: damaged gzip file \(.*\); fetch or compress it again$"),
        (("fake.jsonl.gz",), r"^fake.jsonl.gz: damaged gzip file \(.*\); fetch or compress it again$"),
        (("fake.parquet",), r"^fake.parquet: not a readable Parquet file \(.*\); fetch or write it again$"),
        (
            ("fake.array_record",),
            r"^fake.array_record: not a readable ArrayRecord file \(.*\); fetch or write",
        ),
        (
            ("notes.pdf",),
            r"^notes.pdf: unknown kind of file \(known: .txt .*\); name its source, e.g. --config",
        ),
        (("none",), r"^none: the folder has no file named \*.txt, .*\*.array_record.*; check data.path$"),
        (
            ("mixed",),
            r"^data.path mixes jsonl \(mixed/b.jsonl\), text \(mixed/a.txt\); narrow it with a glob",
        ),
        (("mixed/a.txt", "mixed/b.jsonl"), r"^data.path mixes jsonl"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, paths, message):
    bad_files(tmp_path)
    factories = {"jsonl": jsonl_source, "parquet": parquet_source, "array_record": array_record_source,
                 "text": text_source}  # fmt: skip
    with pytest.raises(DataError, match=message) as caught:
        factories[choose(paths)](paths, CONFIG)
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "my.jsonl", RECORDS)
    source = jsonl_source(("my.jsonl",), CONFIG)
    path.chmod(0)
    try:
        path.open().close()
    except PermissionError:
        with pytest.raises(
            DataError, match=r"^my.jsonl: cannot be read \(Permission denied\); check its perm"
        ):
            jsonl_source(("my.jsonl",), CONFIG)
    assert source[0] == DOCUMENTS[0]  # already open


def test_an_unreadable_disk_is_reported_with_the_file(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "my.jsonl", RECORDS)
    source = jsonl_source(("my.jsonl",), CONFIG)

    class Broken:
        def seek(self, offset: int) -> None:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(source._files[0], "_handle", Broken())
    with pytest.raises(DataError, match=r"^my.jsonl: cannot be read \(Input/output error\); check its perm"):
        source[0]


# --- what can be wrong with records


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', r"not valid JSON \(Expecting ',' delimiter at column 13\)"),
        (b"{'text': 'a'}", r"not valid JSON \(Expecting property name .* at column 2\)"),
        (b'{"text": "\xff"}', r"not UTF-8 text \(byte 0xff at column 11\)"),
        (b"[" * 100_000, r"not usable JSON \(.*recursion.*\)"),
        (b'{"tokens": [' + b"1" * 5000 + b"]}", r"not usable JSON \(.*digits.*\)"),
        (b'["text", "a"]', r"is a list, must be a JSON object with named fields"),
        (b'{"text": 3}', r"field 'text' is a number, must be a string"),
        (b'{"prompt": "a", "completion": true}', r"field 'completion' is true or false, must be a string"),
        (
            b'{"prompt": "a"}',
            r"has no field 'text', nor 'prompt' with 'completion', nor 'tokens' \(it has: prompt\)",
        ),
        (
            b'{"body": "a", "id": 1}',
            r"has no field 'text'.*\(it has: body, id\); name the field with --config",
        ),
        (b'{"tokens": [1, -2]}', r"field 'tokens' must be a list of whole numbers >= 0"),
        (b'{"tokens": [1, true]}', r"field 'tokens' must be a list of whole numbers >= 0"),
        (b'{"tokens": "12"}', r"field 'tokens' must be a list of whole numbers >= 0"),
        (b'{"tokens": [1], "prompt_length": 2}', r"field 'prompt_length' must be a whole number up to 1"),
    ],
)
def test_bad_lines_are_located(tmp_path, line, problem):
    (tmp_path / "my.jsonl").write_bytes(b'{"text": "ok"}\n\n' + line + b"\n")
    source = jsonl_source(("my.jsonl",), CONFIG)
    assert source[0] == Text("ok")
    ending = r".*; mend the record, or leave such records out with --config.data.on_bad_record=skip$"
    with pytest.raises(RecordError, match=r"^my.jsonl:3: " + problem + ending) as caught:
        source[1]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"ab\x00c", r"is not a text file \(zero byte at offset 2\)"),
        (
            "天空".encode("gb18030"),
            r"is not UTF-8 text \(byte 0x.. at offset 0; to convert Chinese text: iconv",
        ),
    ],
)
def test_bad_text_files_are_records(tmp_path, content, problem):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(RecordError, match=r"^a.txt: " + problem):
        text_source(("a.txt",), CONFIG)[0]


def test_a_table_without_usable_columns_is_refused_at_once(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"body": "x"}])
    with pytest.raises(DataError, match=r"^a.parquet: has no field 'text'.*\(it has: body\); name the field"):
        parquet_source(("a.parquet",), CONFIG)


def test_a_record_of_bytes_is_located(tmp_path):
    write_array_record(tmp_path / "a.array_record", [b"fine", b"\xff\xfe"])
    source = array_record_source(("a.array_record",), CONFIG)
    with pytest.raises(
        RecordError, match=r"^a.array_record: record 2: is neither JSON nor UTF-8 text \(byte 0xff\)"
    ):
        source[1]


@pytest.mark.parametrize(
    ("factory", "module", "extra"),
    [(parquet_source, "pyarrow", "parquet"), (array_record_source, "array_record.python", "array-record")],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, factory, module, extra):
    (tmp_path / "a").write_text("x")
    for name in [m for m in sys.modules if m.partition(".")[0] == module.partition(".")[0]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"pip install 'apt-jax\[{extra}\]'$"):
        factory(("a",), CONFIG)
