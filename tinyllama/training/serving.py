"""What a run reads: the corpora of its plan, prepared here or fetched from a remote."""

from collections.abc import Generator
from pathlib import Path

import torch.distributed as dist

from tinyllama.checkpoint.layout import RunFolder
from tinyllama.config.schema import RunConfig
from tinyllama.data.cache import cache_limit
from tinyllama.data.inventory import chosen_folder, corpus_folders
from tinyllama.data.loader import MicroBatch, train_loader
from tinyllama.data.manifest import TRAIN, VALIDATION, Manifest, read_manifest
from tinyllama.data.remote import PATIENCE_SECONDS, fetch_first
from tinyllama.data.remote_corpora import remote_address
from tinyllama.data.shards import require_fingerprint
from tinyllama.engine import heartbeat
from tinyllama.errors import DamageError
from tinyllama.planning.plan import RunPlan
from tinyllama.world import World


class Serving:
    """The samples of a stage, for one rank.

    Collective: all ranks construct it, and ask for samples, at the same points. Constructed, it has of a remote the
    indices, which are those that the plan was made for, and the held-out samples that will be needed.

    Raises:
        DamageError: a remote does not give them as they should be.
    """

    def __init__(self, config: RunConfig, plan: RunPlan, world: World):
        self._config, self._plan, self._world = config, plan, world
        trained = corpus_folders(config, plan.corpora)
        self._trained = {name: path / TRAIN for name, path in trained.items()}
        self._manifests: dict[Path, Manifest] = {}
        for name in config.corpora:
            folder = trained.get(name) or chosen_folder(config, name)
            if (manifest := read_manifest(folder)) is not None:
                self._manifests[folder] = manifest
        # A rank that waits for a remote must speak up before the others give up on it.
        self._patience_seconds = min(PATIENCE_SECONDS, config.cluster.timeout_minutes * 60 / 2)
        if config.paths.remote:
            with heartbeat.doing("while fetching indices and held-out samples"):
                if world.local_rank == 0:
                    for folder, manifest in self._manifests.items():
                        self._fetch(folder, manifest)
                dist.barrier()

    def micro_batches(self, start: int, ahead: int) -> Generator[MicroBatch, None, None]:
        """This rank's, from position `start` of the stage to its end; `ahead` of them are read before they are due."""
        config, trained = self._config, self._trained
        return train_loader(
            self._plan.order,
            trained,
            micro_batch=config.cluster.micro_batch,
            world=self._world,
            start=start,
            stop=self._plan.samples,
            # Not the digest alone: the same run may train in another folder on this machine at the same time.
            run_id=str(RunFolder.of(config.paths.runs, self._plan).path.absolute()),
            workers=config.cluster.workers,
            remotes={name: remote_address(config, path) for name, path in trained.items()}
            if config.paths.remote
            else None,
            cache_limit=cache_limit(config, [self._manifests[path.parent] for path in trained.values()]),
            patience_seconds=self._patience_seconds,
            ahead=ahead,
        )

    @property
    def held_out(self) -> dict[str, Path]:
        """Held-out samples of every configured corpus that is prepared, trained on or not."""
        return {
            manifest.corpus: folder / VALIDATION
            for folder, manifest in self._manifests.items()
            if self._plan.view.samples(manifest.validation.shard_samples)
        }

    def _fetch(self, folder: Path, manifest: Manifest) -> None:
        for split, samples in ((TRAIN, 0), (VALIDATION, self._config.validation.samples)):
            if manifest.splits[split].samples:
                remote = remote_address(self._config, folder / split)
                fetch_first(
                    manifest.corpus, folder / split, remote, samples, self._plan.view, self._patience_seconds
                )  # fmt: skip
        try:
            require_fingerprint(folder)
        except DamageError as error:
            raise DamageError(
                f"{error}; it came from {remote_address(self._config, folder)}: delete {folder} to fetch it again"
            ) from error
