"""Why tests of the bridge are skipped where t5x is not installed."""

REASON = "t5x is on no package index; docs/t5x.md says how to install it"
