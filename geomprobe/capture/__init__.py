"""Where hooks live, and nowhere else: finding the layers, opening a context per forward, handing hidden states on."""
