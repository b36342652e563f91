"""The compiler's words as data."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from builder.diagnostics import LONGEST, parse_diagnostics

OUTPUT = """\
# example.com/m
./main.go:7:2: undefined: x
./main.go:9:15: cannot use "a" (untyped string constant) as int value in
\tvariable declaration
sub/a b.go:3:1: syntax error: non-declaration statement outside function body
# example.com/m/sub
vet: ./main.go:5:2: undefined: y
go.mod:3: invalid go version '1.x': must match format 1.23.0
go: errors parsing go.mod:
github.com/x/y@v1.0.0/z.go:1:1: expected 'package', found x
main.go:10:1: too many errors
\tnot part of anything
note: module requires Go 1.99
too many errors
"""


def test_each_kind_of_line() -> None:
    found = parse_diagnostics(OUTPUT, 200)
    assert [(d["file"], d["line"], d["column"]) for d in found] == [
        ("main.go", 7, 2),
        ("main.go", 9, 15),
        ("sub/a b.go", 3, 1),
        ("main.go", 5, 2),
        ("go.mod", 3, None),
        ("github.com/x/y@v1.0.0/z.go", 1, 1),
    ]
    assert found[1]["message"].endswith("value in\nvariable declaration")
    assert found[5]["message"] == "expected 'package', found x"


def test_windows_line_ends_and_the_limit() -> None:
    assert parse_diagnostics("a.go:1:2: x\r\na.go:2:2: y\r\na.go:3:2: z\r\n", 2) == [
        {"file": "a.go", "line": 1, "column": 2, "message": "x"},
        {"file": "a.go", "line": 2, "column": 2, "message": "y"},
    ]


def test_a_message_without_end_is_cut() -> None:
    found = parse_diagnostics("a.go:1:1: x\n" + "\tmore and more of it\n" * 10_000, 5)
    assert len(found[0]["message"]) <= LONGEST


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("a.go:1\t\n /#é"), max_size=200), st.integers(min_value=0, max_value=5))
@example("a.go:99999999999999999999:1: x", 5)
@example("vet: a.go:1: x\n\ty", 0)
def test_any_text_gives_well_formed_diagnostics(text: str, most: int) -> None:
    found = parse_diagnostics(text, most)
    assert len(found) <= most
    for one in found:
        assert one["file"]
        assert one["line"] < 10**9
        assert "\t" not in one["file"]
