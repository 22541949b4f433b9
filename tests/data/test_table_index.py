"""Where the records of a table begin."""

from __future__ import annotations

import csv
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvl.data import offsets, table_index
from internvl.data.offsets import Offsets
from internvl.data.table_index import index_table
from internvl.errors import InputError

Records = list[tuple[int, list[str]]]
"""The line in which each begins, and its cells."""

SOME = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEPARATORS = st.sampled_from([",", ";", "\t"])


@pytest.fixture(autouse=True, params=[0, table_index.SHORT], ids=["cell by cell", "line by line"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are followed by one pattern or, if long or not well formed, by another."""
    monkeypatch.setattr(table_index, "SHORT", request.param)


def text_of(alphabet: str, **sizes: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(alphabet), **sizes).map("".join)


@st.composite
def tables(draw: st.DrawFn, separator: str) -> str:
    """Valid tables: every way to write a cell, empty lines, either line break, the last one or none."""
    quoted = text_of('a"\n\r,;\t é\u2028\x85').map(lambda text: '"' + text.replace('"', '""') + '"')
    # A quote that is not the first character is one like any other.
    plain = st.tuples(text_of("a é\u2028", min_size=1, max_size=2), text_of('a"é')).map("".join)
    cells = st.lists(st.one_of(quoted, plain, st.just("")), min_size=1, max_size=4)
    lines = draw(st.lists(st.one_of(cells.map(separator.join), st.just("")), max_size=8))
    breaks = draw(st.lists(st.sampled_from(["\n", "\r\n"]), min_size=len(lines), max_size=len(lines)))
    table = "".join(line + end for line, end in zip(lines, breaks, strict=True))
    return table if draw(st.booleans()) else table.rstrip("\r\n")


def by_python(text: str, separator: str, *, is_strict: bool = True) -> tuple[Records, bool]:
    """What `csv.reader` makes of a table, empty lines apart; and whether it comes to the end."""
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, strict=is_strict)
    records: Records = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return records, True
        except csv.Error:
            return records, False
        if cells:
            records.append((line, cells))


def by_index(found: Offsets, separator: str) -> Records:
    return [(found.line(index), cells_of(found.read(index), separator)) for index in range(len(found))]


def cells_of(record: bytes, separator: str) -> list[str]:
    """Of one record; the empty lines after it are in its bytes."""
    reader = csv.reader(io.StringIO(record.decode(), newline="\n"), delimiter=separator, strict=True)
    (cells,) = filter(None, reader)
    return cells


@SOME
@given(data=st.data(), separator=SEPARATORS, mark=st.sampled_from(["", "\ufeff"]))
def test_valid_tables_are_split_as_python_does(
    tmp_path: Path, data: st.DataObject, separator: str, mark: str
) -> None:
    text = data.draw(tables(separator))
    path = tmp_path / "a.csv"
    path.write_bytes((mark + text).encode())
    expected, is_valid = by_python(text, separator)
    assert is_valid
    assert by_index(index_table(path, separator), separator) == expected


@SOME
@given(text=text_of('ab"",,;\n\n\r', max_size=40), separator=st.sampled_from([",", ";"]))
def test_whatever_python_reads_of_any_text_is_found(tmp_path: Path, text: str, separator: str) -> None:
    """Also before the first error, unless the file is refused; and what it reads is never refused."""
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    expected, is_valid = by_python(text, separator)
    try:
        found = index_table(path, separator)
    except InputError:
        assert not is_valid
        return
    for index, (line, cells) in enumerate(expected):
        assert (found.line(index), cells_of(found.read(index), separator)) == (line, cells)
    assert len(found) == len(expected) or not is_valid


@SOME
@given(text=text_of('ab"",,;\n\n', max_size=40), separator=st.sampled_from([",", ";"]))
def test_broken_records_end_where_python_would_end_them(tmp_path: Path, text: str, separator: str) -> None:
    """As it does if it is told to be lenient; else the file is refused."""
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    expected, _ = by_python(text, separator, is_strict=False)
    try:
        found = index_table(path, separator)
    except InputError:
        return
    assert [found.line(index) for index in range(len(found))] == [line for line, _ in expected]


@pytest.mark.parametrize("bad", ['"a"b,c', '"He said "hi"",x', 'a,"b" ', 'a\rb,"c"', 'a"b,"c"d"'])
def test_an_error_in_one_line_stays_there(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f'"1",2\n{bad}\n"3\n4",5\n'.encode())
    found = index_table(path, ",")
    assert [found.read(index) for index in (0, 2)] == [b'"1",2\n', b'"3\n4",5\n']
    with pytest.raises(csv.Error):
        cells_of(found.read(1), ",")


def test_a_cell_after_a_lone_carriage_return_is_not_cut(tmp_path: Path) -> None:
    """The record is bad, its last line no row."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'1,2\na,1\r"b\nc",d\n3,4\n')
    found = index_table(path, ",")
    assert [found.read(index) for index in range(len(found))] == [b"1,2\n", b'a,1\r"b\nc",d\n', b"3,4\n"]


@pytest.mark.parametrize(
    ("rest", "line", "message"),
    [
        ('"c,d\ne,f\n', 3, "never closed"),
        ('c,"d\r\ne,f\r\n', 3, "never closed"),
        ('"c""\n', 3, "never closed"),
        ('"c\nd","e\nf,g\n', 4, "never closed"),
        ('"c\nd,""e\nf,g', 3, "never closed"),
        # Another row's quote closes the cell.
        ('"c,d\ne,f\n"g",h\ni,j\n', 3, "text follows .* line 5"),
        ('"c,d\ne,f\n"g,h\ni,j\n', 3, "text follows .* line 5"),
        # Here the record could end, or go on.
        ('"He said "hi",\nand left",x\n', 3, "text follows .* line 3"),
        ('"a" b","c\nd",e\n', 3, "text follows .* line 3"),
        ('c"d,"e"f\n', 3, "text follows .* line 3"),
        ('"12" disc",d\ne,f\n', 3, "text follows .* line 3"),
        ('c,1\r"d\ne",f\n"g"h",i\n', 5, "text follows .* line 5"),
    ],
)
def test_open_ends_are_refused_by_the_line_of_the_quote(
    tmp_path: Path, rest: str, line: int, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"question,answer\na,b\n{rest}".encode())
    with pytest.raises(InputError, match=rf"a\.csv, line {line}: .*{message}.* Close the quoted cell"):
        index_table(path, ",")


@pytest.fixture
def _limit_of_20(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (offsets, table_index):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 20)


@pytest.mark.usefixtures("_limit_of_20")
@pytest.mark.parametrize("size", [21, 22, 41, 42, 43, 100])
@pytest.mark.parametrize("fill", ["x", "\r"])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_line_over_the_limit_without_quotes_is_a_bad_record(
    tmp_path: Path, size: int, fill: str, is_last: bool
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"1,2\n" + fill.encode() * (size - 1) + (b"y" if is_last else b"\n3,4\n"))
    found = index_table(path, ",")
    with pytest.raises(InputError, match=f"a record of {size} bytes, the limit is 20"):
        found.read(1)
    good = [0] if is_last else [0, 2]
    assert [found.read(index) for index in good] == [b"1,2\n", b"3,4\n"][: len(good)]
    assert len(found) == 1 + len(good)
    assert found.line(len(found) - 1) == len(found)


@pytest.mark.usefixtures("_limit_of_20")
@pytest.mark.parametrize(
    ("rest", "line"),
    [
        ('"' + "x" * 18 + '"\n', 2),
        ("x" * 30 + ',"y"\n', 2),
        ("x" * 90 + '"\n', 2),
        ('"1\n2\n3\n' + "4" * 50 + '",5\n', 2),
        ('"1\n2\n3\n4\n5\n6\n7\n8\n9\n10"\n', 2),
        ('1,2\n"3,4\n' + "5,6\n" * 9 + '"7,8"\n', 3),
        ('"1\n2","\n3\n4\n5\n6\n7\n8\n9"\n', 3),
    ],
)
def test_a_record_over_the_limit_with_quotes_is_refused(tmp_path: Path, rest: str, line: int) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1,2\n" + rest)
    with pytest.raises(InputError, match=f"line {line}: .* with quotes is over the limit of 20 bytes"):
        index_table(path, ",")


@pytest.mark.usefixtures("_limit_of_20")
def test_a_record_of_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    records = ['"' + "x" * 17 + '"\n', '"1\n2\n3\n4\n5\n6\n7\n8\n9"\n', "y" * 19 + "\n"]
    path.write_text("".join(records))
    found = index_table(path, ",")
    assert [found.read(index).decode() for index in range(len(found))] == records
    assert [found.line(index) for index in range(len(found))] == [1, 2, 11]


@pytest.mark.parametrize(
    "line", [b'"a ""large"" file",' + b"x" * 1000 + b"\n", b'"' + b"x" * 999 + b'\n","y"\n']
)
def test_only_offsets_stay_in_memory(tmp_path: Path, line: bytes) -> None:
    """A file of 10 MB leaves eight bytes a line behind, and indexing it needs no more than a few lines."""
    path, count = tmp_path / "a.csv", 10_000
    path.write_bytes(line * count)
    tracemalloc.start()
    found = index_table(path, ",")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == count
    num_lines = count * line.count(b"\n")
    assert kept < 10 * num_lines + 10_000
    assert peak < 25 * num_lines
    assert found.read(count - 1) == line


def test_a_cell_of_quotes_needs_no_memory_for_each(tmp_path: Path) -> None:
    """A pattern that could turn back at every quote would."""
    path, size = tmp_path / "a.csv", 4 << 20
    path.write_bytes(b'"' * size + b",1\n2,3\n")
    tracemalloc.start()
    found = index_table(path, ",")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [found.read(index)[-4:] for index in range(len(found))] == [b'",1\n', b"2,3\n"]
    assert peak < 6 * size
