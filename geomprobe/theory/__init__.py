"""Section 3 of the paper: laws of scaling, and how far data bear one out."""
