"""Extracts docstrings with `ast`, removes their markup, and splits them into paragraphs."""

import ast
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

_SECTIONS = (
    "args|arguments|attributes|call arguments|caution|citations?|environment variables|"
    "examples?|example output|fields|input shape|inputs|keyword args|keyword arguments|methods|"
    "notes?|options|other parameters|output|output shape|outputs|parameters|params|properties|"
    "raises?|references?|returns?|return value|see also|side effects|todo|usage|usages|warns|yields?"
)
# Google ("Args:"), Markdown ("# Arguments") and bold ("**Args**"); NumPy titles have a rule below.
_SECTION = re.compile(rf"^\s*(#+\s*|\*\*)?(?P<title>{_SECTIONS})\b[^.\n]{{0,30}}$", re.IGNORECASE)
_FIELD = re.compile(r"^\s*(:(param|return|returns|raises|rtype|type|arg|ivar|cvar)\b|@\w+:)")
_ARGUMENTS = ("args", "arguments", "parameters", "params", "attributes", "returns", "yields")
_RULE = re.compile(r"^\s*([-=~^*#_+\"'])\1{2,}\s*$")
_BULLET = re.compile(r"^\s*([-*+•]|\d{1,2}[.)]|\(\d{1,2}\))\s+")
_TYPED = re.compile(r"^\s*(?P<name>\*{0,2}\w[\w, *.]*?) : (?P<type>.{1,40}?)[.,]?$")  # NumPy's
_FENCE = re.compile(r"^\s*```")
_DIRECTIVE = re.compile(r"^\s*\.\. ?(?P<name>[\w:-]+)::\s*(?P<rest>.*)$")
_PROSE_DIRECTIVES = ("note", "warning", "tip", "important", "hint", "caution", "admonition")
_CODE = re.compile(
    r"[=(]\S*[)\]]\s*$|^\s*(import|from \w|def |class |return |@\w|%|\$ )|^\s*[\w.]+ = \S|\($"
)
_LEAD_IN_WORDS = 12
_DROPPED = "\0"  # stands for a dropped block of code

_OUTER = re.compile(r"\b_+|_+\b")  # the underscores of `__init__`
# Within an identifier: underscores, and where a capitalised word of three letters or more begins
# (`GPUs` and `NumPy` stay whole).
_BORDER = re.compile(r"_+|(?<=[A-Za-z0-9])(?=[A-Z][a-z]{2})")

_MARKUP = (
    (
        re.compile(r"%\(\w+\)s|\{\{?\w+\}?\}"),
        " ",
    ),  # templates filled in when the module is imported
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # [text](address)
    (re.compile(r":[\w:+.-]+:`[~!]?([^`<]+?)(\s*<[^>`]*>)?`"), r"\1"),  # :role:`text <target>`
    (re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{0,2}"), r"\1"),  # `text <address>`_
    (re.compile(r"\s*\[#?\w+\]_|\s\[\d{1,2}\](?=[\s.,;]|$)"), ""),  # citation marks
    (re.compile(r"<(https?|ftp)[^>]*>|\(?\b(https?|ftp)://[^\s>)]*\)?>?"), ""),
    (re.compile(r"</?[a-zA-Z][^<>]{0,40}>"), ""),
    (re.compile(r"``?`?"), ""),
    (re.compile(r"(?<!\w)\*\*?(\S[^*]*?)\*\*?(?!\w)"), r"\1"),  # *emphasis*
    (
        re.compile(r"\|(\w+)\||(?<!\w)([A-Za-z]\w*?)__?(?=[\s.,;:)])"),
        r"\1\2",
    ),  # |x| and reST targets
    (re.compile(r"@\w*compatibility\s*(\([^)]*\))?"), ""),
    (re.compile(r"\\[()\[\]\s]|\$\$?|\\(?=[\w*_`'\"{}])"), ""),  # TeX
    (re.compile(r"(?<=[a-z])- +(?=[a-z])"), "-"),  # a hyphen at the end of a line
    (re.compile(r"(?<=\w)::(?=\s|$)"), ":"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"\s+([,;.)])(?=\s|$)"), r"\1"),
    (re.compile(r"\(\s*[,;.]?\s*\)"), ""),
)


@dataclass(frozen=True)
class Documented:
    """Holds a definition with a docstring.

    Attributes:
        name: qualified name, `Class.method` or `function`; empty for the module itself.
        arguments: names of the arguments, without self and cls.
        docstring: as `inspect.cleandoc` returns it.
    """

    name: str
    arguments: tuple[str, ...]
    docstring: str


def documented(source: str) -> Iterator[Documented]:
    """Yields every docstring of a Python file in order of appearance, the module's first.

    A file that does not parse (a template, or another version of Python) yields nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    module = ast.get_docstring(tree)
    if module:
        yield Documented("", (), module)
    yield from _definitions(tree, "")


def _definitions(node: ast.AST, prefix: str) -> Iterator[Documented]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(child)
            if docstring:
                yield Documented(
                    prefix + child.name, _arguments(child), inspect.cleandoc(docstring)
                )
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt):
            yield from _definitions(child, prefix)


def _arguments(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.ClassDef):
        inits = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        node = next(inits, node)
    if isinstance(node, ast.ClassDef):
        return ()
    args = node.args
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return tuple(n for n in names if n not in ("self", "cls") and not n.startswith("_"))


def plain(text: str) -> str:
    """Remove the markup of roles, links, emphasis and citations, and collapse spaces."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def sections(docstring: str) -> list[tuple[str, list[str]]]:
    """Return (title, lines) of every section; the first has no title, titles are in lower case."""
    result: list[tuple[str, list[str]]] = [("", [])]
    lines = docstring.expandtabs(4).splitlines()
    fenced = False
    for i, line in enumerate(lines):
        fenced ^= bool(_FENCE.match(line))
        following = lines[i + 1] if i + 1 < len(lines) else ""
        title = _title(line, following) if i and not fenced else ""
        if title:
            result.append((title, []))
        elif not _RULE.match(line):
            result[-1][1].append(line)
    return result


def _title(line: str, following: str) -> str:
    """Return the title, in lower case, of the section that `line` opens, or an empty string."""
    if line.strip() and _RULE.match(following):
        return line.strip(" *#:").lower()
    match = _SECTION.match(line)
    if match and line.rstrip().endswith((":", "**", match["title"])):
        return match["title"].lower()
    return "fields" if _FIELD.match(line) else ""


def body_paragraphs(docstring: str) -> list[str]:
    """Return the plain paragraphs before the first section."""
    return paragraphs(sections(docstring)[0][1])


def argument_text(docstring: str) -> str:
    """Return the sections about arguments and results as one plain paragraph."""
    parts = []
    for title, lines in sections(docstring)[1:]:
        if title in _ARGUMENTS:
            parts += [f"{title.capitalize()}:", *paragraphs(lines)]
    return " ".join(parts)


def paragraphs(lines: list[str]) -> list[str]:
    """Split lines into plain paragraphs; each list item becomes a paragraph.

    Code blocks, doctests, formulas and tables are dropped, with the "For example:" before them.
    """
    blocks: list[str] = [""]
    for line in _prose_lines(lines):
        if line == _DROPPED:
            last = -1 if blocks[-1] or len(blocks) == 1 else -2
            blocks[last] = _without_lead_in(blocks[last])
        elif not line.strip():
            blocks += [""] if blocks[-1] else []
        elif _BULLET.match(line):
            blocks.append(_BULLET.sub("", line))
        else:
            blocks[-1] += f" {line}"
    return [text for text in map(plain, blocks) if text]


def _without_lead_in(block: str) -> str:
    """Remove from `block` a short last sentence that ends in a colon, or else the final colon.

    A lead-in such as "For example:" is meaningless without the example; a longer sentence is not.
    """
    if not block.rstrip().endswith(":"):
        return block
    start = max((m.end() for m in re.finditer(r"[.!?]\s", block)), default=0)
    if len(block[start:].split()) <= _LEAD_IN_WORDS:
        return block[:start]
    return block.rstrip(": ") + "."


def _prose_lines(lines: list[str]) -> Iterator[str]:
    """Yields the lines of prose, and `_DROPPED` for lines that are not prose."""
    margin = (
        -1
    )  # indentation of the line before a literal block while the block is skipped, else -1
    fenced = doctest = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        doctest = (doctest and bool(line.strip())) or line.lstrip().startswith(">>>")
        if margin >= 0 and line.strip() and indent <= margin:
            margin = -1
        if _FENCE.match(line):
            fenced = not fenced
            yield _DROPPED
        elif fenced or doctest or _is_code(line) or (margin >= 0 and line.strip()):
            yield _DROPPED
        elif match := _DIRECTIVE.match(line):
            prose = match["name"] in _PROSE_DIRECTIVES
            margin = -1 if prose else indent
            yield match["rest"] if prose else _DROPPED
        elif margin < 0 and not line.lstrip().startswith((".. ", "|", "+-")):
            margin = indent if line.rstrip().endswith("::") else -1
            yield _TYPED.sub(r"\g<name>: \g<type>.", line) if " : " in line else line


def _is_code(line: str) -> bool:
    if _CODE.search(line) and (line.startswith("  ") or " = " in line):
        return True
    symbols = sum(not (c.isalnum() or c.isspace() or c in ".,;:'\"-()`*_") for c in line)
    return symbols > 0.2 * max(len(line.strip()), 1)


def uncased(text: str) -> str:
    """Convert to lower case and split identifiers, so that `SparseTensor` equals `sparse_tensor`.

    A small model that has learnt to copy can then write `converts a sparse tensor` about a function
    named `convert_SparseTensor`.
    """
    return " ".join(_BORDER.sub(" ", _OUTER.sub("", text)).lower().split())


def words(text: str) -> list[str]:
    """Return the words and numbers of a text, in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())


def shingles(text: str, size: int) -> set[int]:
    """Return hashes of all n-grams of n = `size` words; they are valid within this process only."""
    tokens = words(text)
    return {hash(" ".join(tokens[i : i + size])) for i in range(len(tokens) - size + 1)}


def text_hash(text: str) -> str:
    """Return the first 16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
