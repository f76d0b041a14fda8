"""One text under one model: the table of all sites, and which tokens each token is made of."""
