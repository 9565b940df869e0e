"""Downstream tasks: rows with labels become features, a head, figures beside baselines. Start at `classification`.

What every task shares stands in files of its own: `config` and `rows` (reading, duplicates, the split), `features`
(tokens and batches), `heads` (the model), `trainer`. A task is one further file.
"""
