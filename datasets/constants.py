"""Pixel statistics that clips are normalised with."""

# per channel, of pixels in [0, 1]: the values the TimeSformer weights were trained with
PIXEL_MEAN = (0.45, 0.45, 0.45)
PIXEL_STD = (0.225, 0.225, 0.225)

NUM_CHANNELS = 3  # red, green, blue
