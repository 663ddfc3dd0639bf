"""Raw corpus files -> documents, by stated rules.

Each row of a file (formats.py) becomes a document, unless a filter of the corpus leaves it out or a rule applies:

- A row that cannot be used (no JSON, no UTF-8, no object, a field missing, a text that is none, the rest of a file that
  was cut short) stops the preparation; with `on_bad_row=skip` it is left out and counted by its reason.
- An empty text is left out and counted as "empty" in both cases; so is a null.
- A text is else kept as it is, whatever its length. NULs stay in it, which is counted as noted; half a surrogate pair,
  which JSON can hold and no encoding can, becomes "?", which is counted as noted too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllama.config.schema import CorpusConfig, OnBadRow
from tinyllama.data.formats import rows
from tinyllama.data.listing import RawFile
from tinyllama.errors import ConfigError

BAD_ROWS = 20
"""How many bad rows are told one by one."""
REASONS = 100
"""How many reasons to leave rows out are told apart; a filter's field may have any number of values."""
HAS_NUL = "holds NUL"
HALF_PAIR = "held half a surrogate pair"


@dataclass(frozen=True)
class Document:
    """A text that passed the filters, the line or row of its file that it stands in (from 1), and its source set."""

    text: str
    row: int
    source_set: str


@dataclass
class Findings:
    """What was left out, and what was unusual: rows `skipped` by reason, documents `noted` by what is unusual in them,
    and the first bad rows as FILE:ROW: WHY."""

    skipped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)


def read_documents(path: Path, file: RawFile, corpus: CorpusConfig, findings: Findings) -> Iterator[Document]:
    """Documents of one raw file in their order, read from `path`, where its content is.

    Raises:
        ConfigError: a row cannot be used, and `on_bad_row` is not skip; a file of no known format.
    """
    rules = _Rules(file, corpus, findings)
    for row, fields in rows(path, file, corpus, rules.bad_row):
        try:
            document = rules.document(row, fields)
        except _Unusable as error:
            rules.bad_row(row, error.reason, error.detail)
        else:
            if document is not None:
                yield document


def source_sets(corpus: CorpusConfig) -> dict[str, str]:
    """Names for the globs of a corpus: what differs between them, or the corpus's own name for a single one."""
    globs = list(dict.fromkeys(corpus.files))
    if len(globs) == 1:
        return {globs[0]: corpus.name}
    names = [glob.split("/") for glob in globs]
    for end in (0, -1):
        while all(len(name) > 1 for name in names) and len({name[end] for name in names}) == 1:
            names = [name[1:] if end == 0 else name[:-1] for name in names]
    return {glob: "/".join(name) for glob, name in zip(globs, names, strict=True)}


class _Unusable(Exception):
    """A row that cannot be used: the kind of reason, which is counted, and what it comes to in this row."""

    def __init__(self, reason: str, detail: str):
        self.reason, self.detail = reason, detail


class _Rules:
    """What becomes of the rows of a file."""

    def __init__(self, file: RawFile, corpus: CorpusConfig, findings: Findings):
        self._path, self._corpus, self._findings = file.path, corpus, findings
        sets = {} if corpus.source_field else source_sets(corpus)
        self._source_set = sets.get(file.glob, corpus.name)

    def document(self, row: int, fields: Mapping[str, Any]) -> Document | None:
        """What a row holds; None, and counted, where it is left out."""
        reason = self._refused(fields)
        text = "" if reason else self._text(fields)
        if not text:
            self._findings.skipped[reason or "empty"] += 1
            return None
        return Document(text, row, self._set_of(fields))

    def bad_row(self, row: int, reason: str, detail: str) -> None:
        """Stop at a row, or count it.

        Raises:
            ConfigError: rows that cannot be used stop the preparation.
        """
        message = f"{self._path}:{row} {detail}"
        if self._corpus.on_bad_row is OnBadRow.stop:
            raise ConfigError(
                f"{message}; mend or fetch the file again, or leave out what cannot be used: "
                f"corpora.{self._corpus.name}.on_bad_row=skip"
            )
        self._findings.skipped[reason] += 1
        if len(self._findings.bad_rows) < BAD_ROWS:
            self._findings.bad_rows.append(message)

    def _refused(self, fields: Mapping[str, Any]) -> str | None:
        """Why the corpus's filters leave a row out; None when they keep it."""
        for name, values in self._corpus.keep.items():
            if (value := str(self._field(fields, name, "keep"))) not in values:
                return self._reason(name, value, "is not kept")
        for name, values in self._corpus.drop.items():
            if (value := str(self._field(fields, name, "drop"))) in values:
                return f"{name}={value} is dropped"
        return None

    def _reason(self, name: str, value: str, verdict: str) -> str:
        skipped, reason = self._findings.skipped, f"{name}={value} {verdict}"
        return reason if reason in skipped or len(skipped) < REASONS else f"another {name} {verdict}"

    def _text(self, fields: Mapping[str, Any]) -> str:
        name = self._corpus.text_field
        text = self._field(fields, name, "text_field")
        if text is None:
            return ""
        if not isinstance(text, str):
            raise _Unusable(f"{name} is no text", f"has no text in {name} but a {type(text).__name__}")
        if "\0" in text:
            self._findings.noted[HAS_NUL] += 1
        try:
            text.encode()
        except UnicodeEncodeError:
            self._findings.noted[HALF_PAIR] += 1
            text = text.encode("utf-8", "replace").decode("utf-8")
        return text

    def _set_of(self, fields: Mapping[str, Any]) -> str:
        name = self._corpus.source_field
        value = None if name is None else self._field(fields, name, "source_field")
        return self._source_set if value is None else str(value)

    def _field(self, fields: Mapping[str, Any], dotted: str, setting: str) -> Any:
        value: Any = fields
        for name in dotted.split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise _Unusable(
                    f"lacks {dotted}",
                    f"lacks {dotted}, which corpora.{self._corpus.name}.{setting} names; it has {', '.join(fields)}",
                )
            value = value[name]
        return value
