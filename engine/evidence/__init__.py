"""From tested runs to comparisons, experiments and pages."""
