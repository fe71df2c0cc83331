"""Passes to jobs, jobs to processes: here, on local GPUs, through Slurm; their state in files.

Imports passes, tracking, config and below; the home of submitit.
Start with dispatch.py; slurm.py makes sbatch's text.
"""
