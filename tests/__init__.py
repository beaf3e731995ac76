"""The tests; they mirror the package, one test module a module."""
