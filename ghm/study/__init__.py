"""A question that takes many trainings: `studies/<name>.yaml` -> trials -> a table and a figure in `reports/studies/`."""
