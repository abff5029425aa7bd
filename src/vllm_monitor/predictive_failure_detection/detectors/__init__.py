"""Detectors, one file each, named after its method; all score without changing and learn in bounded memory."""
