"""The database's schema, step by step: Alembic revisions, forward and back, and the code that runs them."""
