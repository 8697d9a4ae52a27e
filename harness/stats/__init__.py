"""Pure statistics: estimates and their intervals, tests, pairing, timing, draws, Pareto fronts, change points."""
