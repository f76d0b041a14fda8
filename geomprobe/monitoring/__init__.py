"""Alarms: rules over the numbers that a probe reads while a model trains."""
