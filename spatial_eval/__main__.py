"""python -m spatial_eval: the same as the command spatial-eval."""

from spatial_eval.cli.main import run_command_line

if __name__ == "__main__":
    run_command_line()
