"""Line colours of detectors and colours in every figure, as matplotlib names them."""

DETECTOR_LINES = {"R": "tab:red", "G1": "tab:green", "G2": "yellowgreen", "B": "tab:blue"}
"""Line colour of each detector."""

COLOUR_LINES = {"R": "tab:red", "G": "tab:green", "B": "tab:blue"}
"""Line colour of each colour, and of the shade over its band."""
