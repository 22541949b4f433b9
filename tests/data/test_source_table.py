"""CSV and TSV files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internvl.data.offsets import MAX_RECORD_BYTES
from internvl.data.source_table import TableRows
from internvl.errors import InputError

CELLS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=8), is_tabbed=st.booleans())
def test_whatever_a_csv_writer_writes_is_read(
    tmp_path: Path, rows: list[tuple[str, str]], is_tabbed: bool
) -> None:
    """Also cells with breaks, quotes and separators."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if is_tabbed else ",")
    writer.writerows([("question", "answer"), *rows])
    path = tmp_path / f"a.{'tsv' if is_tabbed else 'csv'}"
    path.write_bytes(text.getvalue().encode())
    source = TableRows(path)
    found = [source.row(index) for index in range(len(source))]
    assert found == [{"question": question, "answer": answer} for question, answer in rows]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_seen_in_the_first_line(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "a.csv"
    header, line = (
        separator.join([" Image", "Question", "ANSWER"]),
        separator.join(["a.jpg", "what?", "that"]),
    )
    path.write_text(f"\ufeff{header}\n{line}\n", encoding="utf-8")
    assert TableRows(path).row(0) == {"image": "a.jpg", "question": "what?", "answer": "that"}


def test_lines_are_counted_through_breaks_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\nquestion,answer\n"a\nb\nc",1\n\nd,2\ne,3\n')
    source = TableRows(path)
    assert [source.where(index).rpartition(" ")[2] for index in range(3)] == ["3", "7", "8"]
    assert source.row(0)["question"] == "a\nb\nc"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,b,c", "3 cells for the 2 columns question, answer"),
        ("a", "1 cells"),
        ('"a"b,c', "not a row of a table"),
        ("a\rb,c", "not a row of a table"),
        ("\udcff,y", "not UTF-8 .* position 0.*save the table as"),
    ],
)
def test_a_broken_row_is_named_and_the_others_stay(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"question,answer\n1,2\n{line}\n3,4\n", encoding="utf-8", errors="surrogateescape")
    source = TableRows(path)
    assert len(source) == 3
    with pytest.raises(InputError, match=f"line 3: .*{message}"):
        source.row(1)
    assert source.row(2) == {"question": "3", "answer": "4"}


@pytest.mark.parametrize("cell", ["x" * 200_000, '"' + "a line, more\n" * 20_000 + '"'])
def test_a_cell_may_be_long(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"question,answer\n1,2\n{cell},y\n3,4\n")
    source = TableRows(path)
    assert [source.row(index)["answer"] for index in range(len(source))] == ["2", "y", "4"]
    assert source.row(1)["question"] == cell.strip('"')


def test_any_cell_of_a_record_within_the_limit_is_read() -> None:
    """The limit of `csv` is one for the process; to try a cell of 64 MiB takes half a gigabyte."""
    assert csv.field_size_limit() >= MAX_RECORD_BYTES


def test_a_quote_that_stays_open_is_no_bad_row(tmp_path: Path) -> None:
    """All rows after it would be one."""
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n1,2\n"3,4\n' + "5,6\n" * 1000)
    with pytest.raises(InputError, match=r"line 3: .* never closed"):
        TableRows(path)


def test_a_bad_row_of_several_lines_says_so(tmp_path: Path) -> None:
    """A quote that the next one closes, rows later, can look like a table."""
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n1,"2\n3,4\n5,6",7\n8,9\n')
    source = TableRows(path)
    with pytest.raises(InputError, match="line 2: 3 cells in 3 lines for the 2 columns"):
        source.row(0)
    assert source.row(1) == {"question": "8", "answer": "9"}


def test_a_byte_order_mark_is_no_part_of_a_quoted_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeff"question\n",answer\n1,2\n', encoding="utf-8")
    source = TableRows(path)
    assert source.row(0) == {"question": "1", "answer": "2"}
    assert source.where(0).endswith("line 3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"question,question\n", "a name of its own"),
        (b"question,\n", "a name of its own"),
        ("question,answer\n".encode("utf-16"), "first line: .*utf-8"),
    ],
)
def test_the_first_line_must_name_the_columns(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        TableRows(path)


def test_an_index_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n1,2\n")
    for index in (-1, 1):
        with pytest.raises(IndexError, match="1 rows"):
            TableRows(path).row(index)
