"""python -m spark_jobs --dataset ml1m --raw DIR"""

from pnfrec_dist.cli import run_command
from spark_jobs.prepare import main

if __name__ == "__main__":
    run_command(main)
