"""From records to findings: estimates with their uncertainty, the trade-off table, the Pareto front. Pure."""
