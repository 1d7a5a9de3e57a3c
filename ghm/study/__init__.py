"""A question that takes many trainings: `studies/<name>.yaml` -> trials -> table and figure in `reports/studies/`."""
