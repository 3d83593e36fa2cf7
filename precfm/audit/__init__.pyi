from precfm.audit.agreement import Agreement as Agreement
from precfm.audit.agreement import agreements as agreements
from precfm.audit.archive import export_experiment as export_experiment
from precfm.audit.importing import import_archive as import_archive
from precfm.audit.integrity import audit as audit
from precfm.audit.report import Report as Report
