"""From tested runs to what may be said about their arms."""
