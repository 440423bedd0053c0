"""`fla-mesa compare`: models trained on the same tokens in the same order, evaluated alike.

plan -> run -> records -> report:

flags, variants     the command line, and presets/ beside it; plan: what is compared
cell                one run: what is stored of it, and its work, which fla_mesa.train.worker does in other processes
columns             what is reported of a model, a function each
run                 every cell, then each model at its best learning rate
display             bars, lines and the time left
tables, pictures    what a report shows; plots draws PNG files, page the report.html
report              of one comparison; suite: of several side by side
folder, command     where it lies, and the command line; demo
"""
