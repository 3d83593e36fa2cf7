"""Kind `flows`: train the velocity field in the preconditioned space."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from precfm.core.errors import PrecfmError
from precfm.core.options import validated
from precfm.flows.settings import Budget, FlowSettings, Recipe
from precfm.pipeline.job import Job
from precfm.pipeline.shards import require_finite
from precfm.preconditioned_flow import PreconditionedFlow, save_weights
from precfm.preconditioners.saving import load
from precfm.training.batched import train_many
from precfm.training.processes import first_before_others
from precfm.training.shards import ShardedRows
from precfm.training.state import TrainingResult

TRAIN = "train.safetensors"


def make(job: Job) -> None:
    """Train on the train split; write the weights at every checkpoint, the loss at every step, and the cost."""

    def write_checkpoint(step: int, network: nn.Module) -> None:
        _write_checkpoint(job, step, network)

    flow, how = _flow(job), {"scratch": job.scratch, "on_checkpoint": write_checkpoint}
    if job.parents("through"):
        before = [load(each.verified()).to(job.node.device) for each in job.parents("through")]
        maps, data = [*before, flow.preconditioner], _rows(job)
        result = flow.train_through(maps, *data, seed=_seed(job), decoder_metric=_decoder_metric(job), **how)
    elif len(job.parent("latents").shards(TRAIN)) > 1 and not flow.needs_all_rows(bool(job.parents("skip"))):
        result = flow.train(rows=_mapped_shards(job, flow), seed=_seed(job), **how)
    else:
        _prepare(job, flow, *_rows(job))
        result = flow.train(seed=_seed(job), **how)
    _write(job, flow, result)


def make_many(jobs: Sequence[Job]) -> None:
    """The same for flows that differ in their seeds alone, which train in one batched computation."""
    if len(jobs[0].parent("latents").shards(TRAIN)) > 1:
        raise PrecfmError("latents: are in shards, which would be in memory once for each seed")
    flows = [_prepare(job, _flow(job), *_rows(job)) for job in jobs]

    def write_checkpoint(position: int, step: int, network: nn.Module) -> None:
        _write_checkpoint(jobs[position], step, network)

    results = train_many(
        [flow.network for flow in flows],
        [flow.objective for flow in flows],
        [flow.data for flow in flows],
        flows[0].settings.training,
        seeds=[_seed(job) for job in jobs],
        scratch=jobs[0].scratch,
        facts=flows[0].description(),
        on_checkpoint=write_checkpoint,
        name="flows",
    )
    for job, flow, result in zip(jobs, flows, results, strict=True):
        _write(job, flow, result)


def _flow(job: Job) -> PreconditionedFlow:
    """A flow as the plan, a budget and a recipe say, behind its map."""
    settings = validated(FlowSettings, job.params["flow"])
    if job.parents("budget"):
        budget = validated(Budget, job.parent("budget").json("budget.json"))
        settings = settings.matched(budget, job.params["match"])
    if job.parents("recipe"):
        settings = settings.tuned(validated(Recipe, job.parent("recipe").json("recipe.json")))
    preconditioner = load(job.parent("preconditioner").verified()).to(job.node.device)
    return PreconditionedFlow.from_settings(settings, preconditioner)


def _rows(job: Job) -> tuple[Tensor, Tensor]:
    """Latents and labels of the train split, where the flow is trained."""
    split = job.parent("latents").tensors(TRAIN)
    return split["latents"].to(job.node.device), split["labels"].to(job.node.device)


def _seed(job: Job) -> int:
    return int(job.params["seed"])


def _decoder_metric(job: Job) -> Tensor | None:
    return job.tensor("decoder_metric", "metric.safetensors", "metric")


def _prepare(
    job: Job,
    flow: PreconditionedFlow,
    x1: Tensor,
    labels: Tensor,
    label_counts: Sequence[int] | None = None,
) -> PreconditionedFlow:
    return flow.prepare(
        x1,
        labels,
        seed=_seed(job),
        decoder_metric=_decoder_metric(job),
        fitted_wrappers=job.parent("skip").tensors("wrappers.safetensors") if job.parents("skip") else None,
        label_counts=label_counts,
    )


def _mapped_shards(job: Job, flow: PreconditionedFlow) -> ShardedRows:
    """Prepare a flow on the first shard of the latents, and map them shard by shard to files in the scratch folder."""
    stored, device = job.parent("latents").rows(TRAIN), job.node.device
    counts = stored.read(0, len(stored), ["labels"])["labels"].bincount().tolist()

    def shard(file: Path) -> tuple[Tensor, Tensor]:
        tensors = load_file(file, device=device)
        return tensors["latents"], tensors["labels"]

    _prepare(job, flow, *shard(stored.paths[0]), label_counts=counts)
    paths = [job.scratch / f"rows-{place:05d}.safetensors" for place in range(len(stored.paths))]
    start = 0
    with first_before_others():
        for file, path in zip(stored.paths, paths, strict=True):
            x1, labels = shard(file)
            if not path.is_file():  # a killed job has written some
                mapped = flow.mapped_rows(x1, labels)
                require_finite(mapped[0], "mapped train", start, "another preconditioner is needed")
                part, named = path.with_suffix(".part"), zip(("latents", "labels"), mapped, strict=True)
                save_file({name: tensor.cpu().contiguous() for name, tensor in named}, part)
                part.replace(path)
            start += len(x1)
    return ShardedRows(paths)


def _write_checkpoint(job: Job, step: int, network: nn.Module) -> None:
    save_weights(network, job.folder / f"step-{step:06d}.safetensors")


def _write(job: Job, flow: PreconditionedFlow, result: TrainingResult) -> None:
    cost = {
        "flow_parameters": flow.num_parameters,
        "flops_per_step": flow.flops_per_step,
        "steps": flow.settings.training.steps,
        "notes": " ".join(flow.notes),
    }
    job.write_frame("history.csv", result.history)
    job.write_json("flow.json", flow.description())
    job.write_json("cost.json", cost)
