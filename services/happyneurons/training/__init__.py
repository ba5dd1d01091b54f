"""Training networks in blocks of steps: what the stages ffn-train and mask-train, and their networks, share.

blocks     options, states and their mean, figures and when to stop: numbers alone
trainer    a Keras network and its optimizer, which start from a state and leave one
artifact   the files of a model
pictures   curves of a training
session    what the rounds of a training job share: inputs, checkpoints, history
rounds     the rounds: blocks of training and judging in turn, then the model
"""
