"""The pixel statistics for normalising clips."""

# per channel, of pixels in [0, 1]; the TimeSformer weights were trained with these
PIXEL_MEAN = (0.45, 0.45, 0.45)
PIXEL_STD = (0.225, 0.225, 0.225)

NUM_CHANNELS = 3  # red, green, blue
