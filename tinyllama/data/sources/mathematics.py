"""Mathematics: sympy's documentation and tests, and worked problems in LaTeX of our own."""

from collections.abc import Iterator
from itertools import count
from random import Random

from tinyllama.data.sources.installation import InstalledFile, docstrings, installed_files
from tinyllama.data.sources.problems import PROBLEMS

MIN_CHARACTERS, MAX_CHARACTERS = 300, 60_000
_PACKAGES = {"sympy", "mpmath"}


def computer_algebra() -> Iterator[str]:
    """Modules and tests of the algebra systems, for algebraic-stack."""
    for file in _files():
        if MIN_CHARACTERS <= len(source := file.text()) <= MAX_CHARACTERS:
            yield source


def explanations() -> Iterator[str]:
    """Documentation about mathematics, for open-web-math: formulas, prose and examples."""
    for file in _files():
        text = "\n\n".join(docstrings(file.text()))
        if len(text) >= MIN_CHARACTERS:
            yield text


def worked_problems(seed: int) -> Iterator[str]:
    """Endless sheets of problems with their solutions, no two alike."""
    titles = ("Exercises", "Problem sheet", "Worked examples", "Practice problems", "Homework with solutions")
    for number in count(1):
        random = Random(f"worked problems {seed} {number}")
        problems = [random.choice(PROBLEMS)(random) for _ in range(random.randint(3, 7))]
        body = "\n\n".join(
            f"\\textbf{{Problem {index}.}} {question}\n\n\\textit{{Solution.}} {solution}"
            for index, (question, solution) in enumerate(problems, 1)
        )
        yield f"\\section*{{{random.choice(titles)} {number}}}\n\n{body}\n"


def _files() -> Iterator[InstalledFile]:
    return (file for file in installed_files(".py") if file.package in _PACKAGES)
