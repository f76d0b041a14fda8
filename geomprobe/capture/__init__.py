"""Where hooks live, and nowhere else: finding the layers, opening a frame per forward, handing hidden states on."""
