"""The platform under load, on SQLite and on PostgreSQL: a module for each question."""
