"""The command line: which verbs there are and what they take."""
