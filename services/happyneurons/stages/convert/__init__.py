"""A volume from any format into any other."""
