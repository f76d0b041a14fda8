"""The figures and tables of *The Information of Large Language Model Geometry*, as commands."""
