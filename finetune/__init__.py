"""Prompt groups to results: tasks, the few-shot protocol, the methods, scores and the report."""
