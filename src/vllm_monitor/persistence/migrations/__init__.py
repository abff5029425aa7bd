"""The Alembic migrations of the store; ``env.py`` and ``versions`` are run by Alembic, not imported."""
