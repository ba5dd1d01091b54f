"""Flood-filling networks: the network, its training, and segmentation with it.

Shared by the stages `segment` and `ffn-train`. The method is that of Januszewski et al.,
"High-precision automated reconstruction of neurons with flood-filling networks", Nature Methods
15 (2018), and of its reference implementation (github.com/google/ffn), whose options keep their
names and meaning here.

architecture   what a network looks like, and what its input was normalized by
network        the network in Keras on TensorFlow, and fast single steps of it
model          model artifacts: our own files, and Google's TensorFlow 1 checkpoints
movement       where the field of view goes next
seeds          where objects are started
canvas         the state of segmenting one subvolume
inference      options, and the whole of segmenting one subvolume
sampling, examples, augmentation, training, validation, pictures   making models
"""
