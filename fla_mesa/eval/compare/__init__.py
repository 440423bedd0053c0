"""`fla-mesa compare`: models trained on the same tokens in the same order, evaluated in the same way.

plan -> run -> records -> report:

flags, variants     the command line, and presets/ beside it; plan: what is compared
cell                one run: what is stored of it; fla_mesa.train.attempt trains it in another process, which measures it, too
columns             what is reported of a model, a function each
run                 every cell, then each model at its best learning rate
display             bars, lines and the time left
pictures, report    what is shown of one comparison, by fla_mesa.report; suite: of several side by side
folder, command     where it lies, and the command line; demo
"""
