"""`fla-mesa sweep CHECKPOINT`: what each step of the solver buys, in quality and in time, over context lengths.

reading    what is read: held-out text with needles, or a synthetic suite, at several lengths
measured   one solver setting at one length
report     tables, JSON and pictures
command    the command line
"""
