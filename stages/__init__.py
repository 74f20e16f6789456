"""The steps of curation as pure functions on tables, the engines they call, and the schemas."""
