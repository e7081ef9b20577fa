"""Exams: what a world model must be able to do, judged against the real environment under the same keys."""
