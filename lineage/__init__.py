"""The record of every run: writer, reader, SQL views and ``why``."""
