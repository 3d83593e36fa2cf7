"""From numbers to what a reader sees: tables, figures and verdicts on the claims, as functions of data frames."""
