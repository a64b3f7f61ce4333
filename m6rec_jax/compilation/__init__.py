"""What XLA makes of a run's steps on TPUs that need not be there: `m6rec compile`."""
