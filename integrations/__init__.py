"""geomprobe beside other tools: Hugging Face Trainer, accelerate loops, Weights & Biases.

Public names are loaded when first used, so that importing one integration does not need the packages of the others.
"""
