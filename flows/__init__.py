"""Prefect flows and the ``prefmill`` command: what runs, when, and where its files go."""
