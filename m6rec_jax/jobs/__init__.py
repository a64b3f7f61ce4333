"""What the model does for a recommender, one file a job; `job.JOBS` has all of them."""
