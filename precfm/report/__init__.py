"""From numbers to what a reader sees: tables, figures and verdicts, as functions of data frames."""
