"""Questions to a model in training, on its own ranks: no second model in memory, no checkpoint needed, any ZeRO stage.

All ranks build the same questions; each answers its share of them, and all learn all answers. Training goes on as if
nothing had been asked: no weight, gradient or random state is touched.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from tinyllama.checkpoint.agreement import from_main
from tinyllama.config.schema import RunConfig
from tinyllama.data.loader import MicroBatch
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.engine import heartbeat
from tinyllama.engine.zero import ZeroEngine
from tinyllama.evaluation.harness import Answer, Questions, Row, ScoringLM
from tinyllama.evaluation.session import ask_for
from tinyllama.evaluation.suites import suite_averages
from tinyllama.planning.plan import RunPlan
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import StepReport
from tinyllama.world import World


def evaluation_hooks(config: RunConfig, plan: RunPlan, engine: ZeroEngine, world: World) -> list[Hook]:
    """What `evaluation.every_tokens` and `evaluation.tasks` ask for. Collective.

    Raises:
        ConfigError: a task is not known, its data cannot be had, or it has the model write text.
    """
    if config.evaluation.every_tokens is None:
        return []
    loaded: list[Questions | None] = []
    from_main(world, lambda: loaded.append(ask_for(config, generates=False)))  # what it fetches the others find
    questions = loaded[0] if loaded else ask_for(config, generates=False)
    return [Evaluating(questions, config, plan, engine, world)] if questions is not None else []


class Evaluating(Hook):
    """Asks every `evaluation.every_tokens`, and at the end of the stage; what it finds goes into the step's report."""

    def __init__(self, questions: Questions, config: RunConfig, plan: RunPlan, engine: ZeroEngine, world: World):
        self._questions, self._settings, self._plan = questions, config.evaluation, plan
        self._engine, self._world, self._seq_len = engine, world, plan.seq_len
        tokenizer = Tokenizer.load(config.tokenizer)
        start = [tokenizer.bos] * config.tokenizer.add_bos
        self._lm = ScoringLM(lambda text: [*start, *tokenizer.encode(text)], tokenizer.bos, self._score)
        self._step = 0

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        assert self._settings.every_tokens is not None
        at_end = report.progress.step == self._plan.steps
        if at_end or report.progress.crossed(report.before, self._settings.every_tokens):
            self._step = report.progress.step
            scores = self._questions.ask(self._lm, self._settings.limit)
            values = {name: score.value for name, score in scores.items()}
            report.evaluation = values | suite_averages(values)

    def _score(self, rows: list[Row]) -> list[Answer]:
        """The answers to all rows, on every rank; the ranks make equally many passes, as ZeRO-3 needs them to."""
        size, rank, ranks = self._settings.batch_size, self._world.rank, self._world.size
        order = sorted(range(len(rows)), key=lambda at: -len(rows[at][0]) - len(rows[at][1]))
        mine: dict[int, Answer] = {}
        for begin in range(0, len(order), ranks * size):
            places = order[begin + rank * size :][:size] if begin + rank * size < len(order) else []
            found = self._pass([rows[place] for place in places or order[:1]])
            mine.update(zip(places, found, strict=False))
            heartbeat.finished(self._step)
        everyone: list[dict[int, Answer]] = [{}] * ranks
        dist.all_gather_object(everyone, mine)
        answers = {place: answer for each in everyone for place, answer in each.items()}
        return [answers[place] for place in range(len(rows))]

    def _pass(self, rows: Sequence[Row]) -> list[Answer]:
        """One forward pass; texts that are too long lose their beginning."""
        texts = [(context + continuation)[-(self._seq_len + 1) :] for context, continuation in rows]
        tokens = torch.zeros(len(texts), max(map(len, texts)) - 1, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text) - 1] = torch.tensor(text[:-1])
        logs = self._engine.logits(tokens).float().log_softmax(dim=-1)
        answers = []
        for log, text, (_, continuation) in zip(logs, texts, rows, strict=True):
            end, width = len(text) - 1, min(len(continuation), len(text) - 1)
            found, wanted = log[end - width : end], torch.tensor(text[-width:], device=log.device)
            likely = found.gather(1, wanted[:, None]).sum()
            answers.append((float(likely), bool((found.argmax(dim=1) == wanted).all())))
        return answers
