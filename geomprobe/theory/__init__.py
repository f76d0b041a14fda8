"""Section 3 of the paper: its scaling laws, and how well data support one."""
