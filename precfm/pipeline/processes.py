"""One job as several processes, which train together: on a GPU each, or on the processor."""

import signal
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from precfm.core.errors import PrecfmError
from precfm.pipeline.job import Job, script_of
from precfm.pipeline.node import Node
from precfm.pipeline.schema import Flow

STORE, COMPLAINT = "store", "complaint"  # files in the folder where the processes meet


def make_together(job: Job, gpus: Sequence[int]) -> None:
    """Run the script of an artifact in `job.node.devices` processes, of which the first writes the payload.

    All do the same; `precfm.training.trainer.train` gives each its share of every mini-batch. They end with the job,
    also where it is killed, and where one of them fails.

    Args:
        job: the artifact.
        gpus: torch's index of a GPU for each process; empty on the processor.

    Raises:
        PrecfmError: what a process says, or that one was killed.
    """
    import torch
    from torch.multiprocessing.spawn import ProcessExitedException, spawn

    threads = max(1, torch.get_num_threads() // job.node.devices)
    with TemporaryDirectory() as meeting:
        try:
            arguments = job, tuple(gpus), threads, Path(meeting)
            spawn(_process, arguments, nprocs=job.node.devices, daemon=True)  # type: ignore[no-untyped-call]
        except Exception as error:
            for file in sorted(Path(meeting).glob(f"{COMPLAINT}-*")):
                raise PrecfmError(file.read_text(encoding="utf-8")) from None
            if isinstance(error, ProcessExitedException):
                raise PrecfmError(
                    f"devices: one of {job.node.devices} processes was killed ({error}), as where memory ends; the "
                    "same command again goes on"
                ) from None
            raise


def _process(rank: int, job: Job, gpus: Sequence[int], threads: int, meeting: Path) -> None:
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as multiprocessing

    # When the job dies, since a process that waits for others on a GPU hears nothing softer.
    multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    if gpus:
        torch.cuda.set_device(gpus[rank])
    for module in job.node.packages:
        import_module(module)
    dist.init_process_group(
        "nccl" if gpus else "gloo",
        init_method=(meeting / STORE).as_uri(),
        rank=rank,
        world_size=job.node.devices,
    )
    try:
        with TemporaryDirectory() as other:
            own = job if rank == 0 else Job(job.node, Path(other), job.scratch)
            script_of(job.node)(own)
    except PrecfmError as error:
        (meeting / f"{COMPLAINT}-{rank}").write_text(str(error), encoding="utf-8")
        raise
    finally:
        dist.destroy_process_group()


def require_gpus(node: Node) -> None:
    """Refuse a job for which this machine has too few GPUs, where it has any.

    Raises:
        PrecfmError: torch finds none, or fewer than the job asks for.
    """
    import torch

    if not torch.cuda.is_available():
        raise PrecfmError("device: 'cuda', but torch finds no GPU here; a GPU, or `device: cpu`, is needed")
    refuse_more_than(torch.cuda.device_count(), node.devices)


def refuse_uncuttable(field: str, flow: Flow, devices: int) -> None:
    """Refuse a flow whose mini-batches cannot be cut into as many parts as its training needs.

    Args:
        field: of the flow, in the configuration.
        flow: how it is trained.
        devices: processes that train it together.

    Raises:
        PrecfmError: the parts would not be equally large, or the loss is of the whole mini-batch.
    """
    training, parts = flow.training, flow.training.accumulate * devices
    if training.batch_size % parts:
        raise PrecfmError(
            f"{field}.training.batch_size: got {training.batch_size}; a multiple of {parts} is needed, of devices "
            f"({devices}) times accumulate ({training.accumulate})"
        )
    if parts > 1 and getattr(flow.objective.made(), "couples_rows", False):
        raise PrecfmError(
            f"{field}.objective: got '{flow.objective.name}' with a loss that couples the rows of a mini-batch, which "
            f"devices ({devices}) and accumulate ({training.accumulate}) would cut; 1 is needed for both"
        )


def refuse_more_than(found: int, asked: int) -> None:
    """Refuse more GPUs than there are.

    Raises:
        PrecfmError: there are fewer.
    """
    if asked > found:
        raise PrecfmError(f"devices: got {asked}, but torch finds {found} here; at most {found} can be used")
