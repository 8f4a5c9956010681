"""The runner: configures, runs, measures, records and tabulates methods; imported by nothing else."""
