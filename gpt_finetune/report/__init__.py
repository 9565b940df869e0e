"""The page a run leaves behind: curves, figures, samples, ledger; read from the run's folder alone."""

from gpt_finetune.report.curves import write_curves
from gpt_finetune.report.folder import Run, read_run
from gpt_finetune.report.page import write_report
from gpt_finetune.report.redaction import redact

__all__ = ["Run", "read_run", "redact", "write_curves", "write_report"]
