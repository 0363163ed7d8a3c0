"""Only so that conftest.py here and tests/conftest.py are two modules for pytest; nothing to import."""
