"""`make demo`: a training run that is killed at the worst moments, and resumes from memory, from NVMe and from S3 alone."""
