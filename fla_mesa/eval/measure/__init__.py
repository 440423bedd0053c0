"""Every figure of one model, computed in one place. Knows one model and its data, and no command.

quality   loss by position, the score on a synthetic task
speed     prefill, decoding, memory, the size of a state
trained   a finished run: what it recorded, its model, its data
"""
