"""The shared image library: warps, filters, matching, rendering. Arrays are (y, x), points are (n, 2) of (x, y) px."""
