"""From hook to state: gathering rows, and keeping the states that they add to."""
