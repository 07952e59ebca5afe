"""Every file can be read: no long lines, no long files, no names that name nothing."""

import ast
import io
import re
import tokenize

from source_files import PACKAGE_FILES, REPOSITORY_FILES, SourceFile, report

COLUMNS = 100
LINES = 400
# Words that say nothing about the value that they are bound to.
VAGUE_NAMES = {"found", "made", "there", "kept", "seen", "given"}


def long_lines(files):
    """Return the places of lines with more than 100 columns."""
    places = []
    for file in files:
        for number, line in enumerate(file.lines, 1):
            if len(line) > COLUMNS:
                places.append(f"{file.path}:{number} has {len(line)} columns")
    return places


def long_files(files):
    """Return the files with more than 400 lines."""
    return [f"{f.path} has {len(f.lines)} lines" for f in files if len(f.lines) > LINES]


def unformatted_places(files):
    """Return the places of comments that turn the formatter off."""
    places = []
    for file in files:
        if "fmt:" not in file.text:
            continue
        for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
            if token.type == tokenize.COMMENT and re.search(r"fmt:\s*(skip|off)", token.string):
                places.append(f"{file.path}:{token.start[0]}")
    return places


def bound_names(node):
    """Return the names that a piece of syntax binds: variables, parameters, functions, classes,
    attributes, exceptions, imports and captures of patterns.
    """
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        return [node.name]
    if isinstance(node, ast.MatchMapping) and node.rest:
        return [node.rest]
    if isinstance(node, ast.alias) and node.asname:
        return [node.asname]
    return []


def vague_names(files):
    """Return the places at which a vague name is bound."""
    places = []
    for file in files:
        for node in ast.walk(file.tree):
            for name in bound_names(node):
                if name.strip("_") in VAGUE_NAMES:
                    places.append(f"{file.path}:{node.lineno} binds `{name}`")
    return places


def test_no_line_is_longer_than_100_columns():
    report(long_lines(REPOSITORY_FILES))


def test_no_file_is_longer_than_400_lines():
    report(long_files(REPOSITORY_FILES))


def test_the_formatter_is_never_turned_off():
    report(unformatted_places(REPOSITORY_FILES))


def test_no_vague_name_is_bound():
    report(vague_names(PACKAGE_FILES))


# The rules see what breaks them.


def file_with(text):
    return [SourceFile("defend/example.py", text)]


def test_a_long_line_is_seen():
    assert long_lines(file_with("x = 1\n" + "#" * 101)) == ["defend/example.py:2 has 101 columns"]
    assert long_lines(file_with("#" * 100)) == []


def test_a_long_file_is_seen():
    assert long_files(file_with("x = 1\n" * 401)) == ["defend/example.py has 401 lines"]
    assert long_files(file_with("x = 1\n" * 400)) == []


def test_a_comment_that_turns_the_formatter_off_is_seen():
    assert unformatted_places(file_with("x = 1\ny = [1,2]  # fmt: skip\n")) == [
        "defend/example.py:2"
    ]
    assert unformatted_places(file_with("# fmt: off\nx = [1,2]\n")) == ["defend/example.py:1"]
    assert unformatted_places(file_with("x = '# fmt: skip'\n")) == []


BINDINGS = [
    "seen = 1",
    "_seen = 1",
    "seen: int = 1",
    "seen += 1",
    "a, (seen, b) = c",
    "self.seen = 1",
    "def seen(): pass",
    "async def seen(): pass",
    "class seen: pass",
    "def f(seen): pass",
    "def f(*, seen=1): pass",
    "def f(*seen): pass",
    "def f(**seen): pass",
    "lambda seen: 1",
    "for seen in x: pass",
    "[seen for seen in x]",
    "with x as seen: pass",
    "if (seen := x): pass",
    "import x as seen",
    "from x import y as seen",
    "try: pass\nexcept E as seen: pass",
    "match x:\n    case [seen, *_]: pass",
    "match x:\n    case [*seen]: pass",
    "match x:\n    case {**seen}: pass",
]


def test_every_kind_of_binding_is_seen():
    missed = [text for text in BINDINGS if len(vague_names(file_with(text))) != 1]
    assert missed == []


def test_a_use_and_another_name_are_no_binding():
    for text in ("print(seen)", "x.seen", "f(seen=1)", "unseen = 1", "'seen'", "import seen"):
        assert vague_names(file_with(text)) == []


def test_the_place_of_a_vague_name_is_reported():
    assert vague_names(file_with("x = 1\nmade = 2\n")) == ["defend/example.py:2 binds `made`"]
