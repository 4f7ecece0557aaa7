"""One module a verb; each has `run(args) -> exit code`."""
