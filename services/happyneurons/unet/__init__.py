"""U-Nets for masks: what they look like, how they are trained, and how they are applied to sections.

2D, section by section: masks are drawn on few sections, and sections of serial electron microscopy are
much thicker than their pixels. Used by the stages mask-train and mask.
"""
