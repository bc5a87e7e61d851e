"""Runtimes that open exported files.

Each module needs the packages of its own runtime only.
"""
