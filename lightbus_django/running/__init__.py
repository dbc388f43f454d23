"""A worker process: threads for listeners, child processes, and periodic jobs.

Start with `worker`. `database_jobs` and `redis_jobs` list the periodic jobs; `supervisor` runs `--processes N`.
"""
