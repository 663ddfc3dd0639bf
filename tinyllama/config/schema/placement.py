"""Where a run runs. None of it enters a digest."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, List, Optional


class Precision(Enum):
    """What the forward and backward pass compute in; masters, accumulation and reductions are always fp32."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"
    fp8 = "fp8"


class ContainerKind(Enum):
    """What starts ranks in a container."""

    pyxis = "pyxis"
    apptainer = "apptainer"


@dataclass(kw_only=True)
class ContainerConfig:
    """An image that holds Python and the packages; the code and all paths come from outside."""

    kind: ContainerKind
    image: str
    """A file, or what enroot takes for pyxis."""
    mounts: List[str] = field(default_factory=list)
    """OUTSIDE:INSIDE, besides the working directory, the code, the runs and the data."""


@dataclass(kw_only=True)
class SlurmConfig:
    """What is asked of SLURM for each node of the tree; null leaves it to the cluster."""

    partition: Optional[str] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    time_hours: float = 24.0
    """Limit of one job; a stage that needs more goes on in the same job, requeued."""
    notice_seconds: int = 300
    """So long before the limit the run is asked to save and is requeued."""
    gpus_per_node: Optional[int] = None
    """null: one per rank where cluster.gpu names one; 0 asks for none."""
    cpus_per_rank: Optional[int] = None
    memory_gib: Optional[float] = None
    """Per node."""
    exclusive: bool = False
    constraint: Optional[str] = None
    options: Dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch by their long names; true for those without a value."""
    srun_options: Dict[str, Any] = field(default_factory=dict)
    """The same for srun, which starts the ranks."""
    setup: List[str] = field(default_factory=list)
    """Lines of shell that run before the ranks: modules, NCCL's variables."""
    python: Optional[str] = None
    """null: the one that submits; in a container python3."""
    container: Optional[ContainerConfig] = None
    max_failures: int = 3
    """Lives in a row that end badly, or without a new checkpoint, before a run is given up."""
    max_requeues: int = 1000


@dataclass(kw_only=True)
class ClusterConfig:
    """Machines, and how the work is laid on them."""

    name: str
    nodes: int = 1
    processes: Optional[int] = None
    """Ranks per node; null: one per visible GPU, or one."""
    micro_batch: Any
    """Samples per rank and forward pass: at the door a number or auto, a number once loaded."""
    micro_batch_is_auto: bool = False
    """That it was given as auto; nobody sets it."""
    zero_stage: int = 1
    shard_within_node: bool = False
    """ZeRO-3 with a second copy of the weights within each node (hpZ): the original's layout."""
    precision: Precision = Precision.auto
    attention: str = "auto"
    """A kernel of model/attention.py; auto: the fastest of those that run on the device, by measurement."""
    compile: Optional[bool] = None
    """torch.compile; null: on GPUs."""
    loss: str = "auto"
    """How model/loss.py comes from the last hidden states to the loss; auto: whole, in chunks where memory is short."""
    activation_checkpointing: Any = False
    """true: keep of each block only its input, and compute the rest again in the backward pass; selective: keep what
    matrices and attention gave as well; false: keep all."""
    workers: int = 0
    """Processes per rank that read samples; 0: a thread of the rank does, next to the training."""
    cache_gib: Optional[float] = None
    """Limit of what a node keeps of remote shards; null: none."""
    threads: Optional[int] = None
    """CPU threads per rank; null: the cores shared among the ranks."""
    timeout_minutes: float = 10.0
    """How long a collective may wait for a rank."""
    gpu: Optional[str] = None
    """What the GPU is called, for people."""
    gpu_memory_gib: Optional[float] = None
    gpu_peak_tflops: Optional[float] = None
    """Dense bf16 peak."""
    node_gb_per_second: Optional[float] = None
    """What each GPU sends to others of its node, and gets at the same time, in 1e9 bytes per second."""
    network_gb_per_second: Optional[float] = None
    """The same to GPUs of other nodes."""
    assumed_mfu: Optional[float] = None
    """Model FLOPs utilisation that plans reckon with while no finished run tells better."""
    price_per_gpu_hour: Optional[float] = None
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass(kw_only=True)
class PathsConfig:
    runs: str
    data: str
    remote: Optional[str] = None
    """Where prepared corpora are fetched from, shard by shard: an address such as s3://BUCKET/FOLDER to which
    `prepare action=upload` brought them; null: they lie below `data`."""


@dataclass(kw_only=True)
class TrackingConfig:
    name: str
    uri: Optional[str] = None
