"""The audit of data/models/: each pinned model is what its record says, and nothing else lies there."""

from precfm.audit.report import Report
from precfm.core.errors import PrecfmError
from precfm.pipeline.node import MODELS
from precfm.pipeline.pinned import read_record, record_file, training_images, verified, weights_file

BACK = f"`git checkout -- {MODELS}` brings back what is committed"


def check_models(report: Report) -> None:
    """Records, weights and lists of training images against the checksums that the records hold."""
    known = set()
    for record_path in sorted(MODELS.glob("*.json")):
        name = record_path.stem
        known |= {record_file(name), weights_file(name)}
        report.read(record_path)
        try:
            record = read_record(name)
            known.add(MODELS / record.images.file)
            report.read(verified(weights_file(name), record.sha256))
            training_images(record)
        except (PrecfmError, OSError) as error:
            report.error("model", record_path, str(error).removeprefix(f"{record_path}: "), BACK)
    for stray in sorted(set(MODELS.glob("*")) - known):
        report.error("model", stray, "belongs to no pinned model", "delete it")
