"""The light import of MosaicML streaming: everything else takes its classes from here.

`import streaming` pulls in torchvision and transformers, for data sets of pictures and for a loader that we do not use:
6 seconds, and an ImportError where torchvision was built for another torch. Without those modules it takes 0.2 seconds.
"""

import sys
from types import ModuleType

_UNUSED = ("streaming.vision", "streaming.text", "streaming.multimodal", "streaming.base.dataloader")


def _import_without(names: tuple[str, ...]) -> None:
    """Import streaming while empty modules stand where `names` belong; afterwards they can be imported for real."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].StreamingDataLoader = None  # type: ignore[attr-defined]
    try:
        import streaming  # noqa: F401
    finally:
        for name in absent:
            del sys.modules[name]


_import_without(_UNUSED)

import streaming.base.dataset as dataset_module  # noqa: E402
import streaming.base.format.mds.reader as reader_module  # noqa: E402
from streaming.base import LocalDataset, MDSWriter, Stream, StreamingDataset  # noqa: E402
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN  # noqa: E402
from streaming.base.dataset import _ShardState as ShardState  # noqa: E402
from streaming.base.format import FileInfo, Reader  # noqa: E402
from streaming.base.shared import SharedArray  # noqa: E402
from streaming.base.storage.download import CloudDownloader  # noqa: E402
from streaming.base.world import World as StreamingWorld  # noqa: E402

__all__ = [
    "BARRIER_FILELOCK",
    "CACHE_FILELOCK",
    "SHM_TO_CLEAN",
    "CloudDownloader",
    "FileInfo",
    "LocalDataset",
    "MDSWriter",
    "Reader",
    "ShardState",
    "SharedArray",
    "Stream",
    "StreamingDataset",
    "StreamingWorld",
    "dataset_module",
    "reader_module",
]
