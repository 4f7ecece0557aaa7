"""Stage programs: one folder a stage, each run as `python3 -m stages.<name> JOB_FOLDER`."""
