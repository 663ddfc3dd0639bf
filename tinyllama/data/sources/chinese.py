"""Chinese of our own: documents composed from patterns and vocabulary, each about one topic, with its own people."""

import re
from collections.abc import Iterator
from itertools import count
from random import Random

from tinyllama.data.sources.chinese_topics import TOPICS
from tinyllama.data.sources.chinese_words import COMMON, ENDINGS, PATTERNS

_SLOT = re.compile(r"<([^<>]+)>")
_DIGITS = "零一二三四五六七八九"
# Which patterns a document of each kind draws on; letters and interviews are told in the order they stand in.
_STORIES = (("叙",), ("叙",), ("述",), ("述",), ("报", "述"), ("叙", "述"))
_ORDERED = ("信", "问答")
_OPENING = "本报讯"
_TITLES = (
    "<物>与<物>",
    "<镇>的<物>",
    "说说<物>",
    "<地>里的<人>",
    "<季>的<地>",
    "怎样<做>",
    "一位<性>的<人>",
    "<城>见闻",
    "我和<物>",
)


def chinese(seed: int) -> Iterator[str]:
    """Endless documents of a few hundred characters."""
    for number in count(1):
        yield _Document(Random(f"chinese {seed} {number}")).text()


class _Document:
    """One document: its topic, its people and its places stay the same from the first sentence to the last."""

    def __init__(self, random: Random) -> None:
        self._random = random
        topic = TOPICS[random.choice(list(TOPICS))]
        self._words = {kind: words.split() for kind, words in COMMON.items()}
        # A document keeps to a part of its topic's words: it is about something.
        self._words |= {kind: _some(random, topic[kind].split()) for kind in ("物", "人", "地", "做")}
        self._words |= {kind: _some(random, patterns.splitlines()) for kind, patterns in PATTERNS.items()}
        self._words["话"] = topic["话"].splitlines()
        self._year = random.randint(1960, 2025)
        self._words["少多"] = ["少", "多"]
        self._words |= {role: [self._person()] for role in ("主", "友")}
        self._words |= {kind: random.sample(self._words[kind], 2) for kind in ("城", "镇")}

    def text(self) -> str:
        random = self._random
        title = self._fill(random.choice(_TITLES))
        if random.random() < 0.25:
            lines = PATTERNS[random.choice(_ORDERED)].splitlines()
            body = [line for line in lines if random.random() < 0.8]
        else:
            body = self._story(random.choice(_STORIES))
        return "\n".join([title, *map(self._fill, body)])

    def _story(self, kinds: tuple[str, ...]) -> list[str]:
        """Paragraphs of patterns, none of them twice; news opens as news does."""
        random = self._random
        patterns = [pattern for kind in kinds for pattern in self._words[kind]]
        random.shuffle(patterns)
        patterns.sort(key=lambda pattern: not pattern.startswith(_OPENING))
        paragraphs = []
        for _ in range(random.randint(3, 6)):
            length = random.randint(2, 5)
            paragraphs.append("".join(patterns[:length]))
            patterns = patterns[length:]
        return [paragraph for paragraph in paragraphs if paragraph] + [random.choice(ENDINGS)]

    def _fill(self, pattern: str) -> str:
        """Replace slots until none is left; what replaces one may hold others."""
        text = pattern
        while _SLOT.search(text):
            text = _SLOT.sub(lambda slot: self._word(slot[1]), text)
        return text.replace("。”。", "。”").replace("吗”", "吗？”").replace("。。", "。")

    def _word(self, kind: str) -> str:
        random = self._random
        match kind:
            case "客":
                return self._person()
            case "年":
                return f"{self._year - random.randint(0, 20)}年"
            case "后年":
                return f"{self._year + random.randint(1, 9)}年"
            case "月":
                return f"{random.randint(1, 12)}月{random.randint(1, 28)}日"
            case "几":
                return number_in_words(random.randint(2, 99))
            case "数":
                return str(random.randint(2, 99) * 10 ** random.randint(1, 3))
            case "问":
                return random.choice(self._words[kind]).removesuffix("吗") + "？"
            case _:
                return random.choice(self._words[kind])

    def _person(self) -> str:
        given = self._random.sample(self._words["字"], self._random.randint(1, 2))
        return self._random.choice(self._words["姓"]) + "".join(given)


def number_in_words(number: int) -> str:
    """A number below a hundred in Chinese: 20 -> 二十, 13 -> 十三."""
    tens, ones = divmod(number, 10)
    head = "" if tens == 0 else "十" if tens == 1 else f"{_DIGITS[tens]}十"
    return head + (_DIGITS[ones] if ones or not tens else "")


def _some(random: Random, words: list[str]) -> list[str]:
    return random.sample(words, max(1, len(words) * 2 // 3))
