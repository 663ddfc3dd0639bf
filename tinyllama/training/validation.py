"""The loss on held-out samples, corpus by corpus."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from tinyllama.config.schema import ValidationConfig
from tinyllama.data.loader import NO_SAMPLE, MicroBatch, validation_loader
from tinyllama.engine.zero import ZeroEngine
from tinyllama.planning.plan import RunPlan
from tinyllama.training.hooks import Hook
from tinyllama.training.metrics import StepReport
from tinyllama.world import World


class Validation(Hook):
    """Measures the loss on held-out samples of each corpus, every so many tokens and at the end of the stage."""

    def __init__(
        self, engine: ZeroEngine, plan: RunPlan, config: ValidationConfig, folders: Mapping[str, Path],
        micro_batch: int, world: World,
    ):  # fmt: skip
        self._engine, self._plan, self._config, self._world = engine, plan, config, world
        self._folders, self._micro_batch = folders, micro_batch

    def after_step(self, report: StepReport, batch: Sequence[MicroBatch]) -> None:
        at_end = report.progress.step == self._plan.steps
        if at_end or report.progress.crossed(report.before, self._config.every_tokens):
            report.validation = {name: self._loss(folder) for name, folder in self._folders.items()}

    def _loss(self, folder: Path) -> float:
        batches = validation_loader(
            folder,
            samples=self._config.samples,
            micro_batch=self._micro_batch,
            world=self._world,
            seq_len=self._plan.seq_len,
        )
        sums = torch.zeros(2, dtype=torch.float64, device=self._engine.device)
        for micro in batches:
            losses = self._engine.losses(micro.tokens)
            real = (micro.sample_id != NO_SAMPLE).to(losses.device)
            sums += torch.stack([losses[real].double().sum(), real.sum()])
        dist.all_reduce(sums)
        return float(sums[0] / sums[1])
