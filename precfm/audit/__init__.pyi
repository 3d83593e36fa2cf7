from precfm.audit.archive import export_artifacts as export_artifacts
from precfm.audit.archive import import_artifacts as import_artifacts
from precfm.audit.integrity import audit as audit
from precfm.audit.report import Report as Report
