"""The data before they are trained on: do the anchors fit, and what does the network see."""
