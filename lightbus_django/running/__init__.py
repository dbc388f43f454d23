"""A worker process: threads for listeners, child processes, and periodic jobs.

Start with `worker`. `housekeeping` and `database_jobs` list the periodic jobs; `supervisor` runs `--processes N`.
"""
