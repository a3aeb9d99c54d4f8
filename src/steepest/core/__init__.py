"""The machinery of all optimizers: hyper-parameters, groups, plans, steps, states."""
