"""Random problems and calls, until something is wrong: what `convbackprop fuzz` does, and the tests in a short form.

`problems` draws problems, `laws` says what must hold without a reference, `arguments` makes malformed calls, `cases`
is one thing that is tried and the command that tries it again, `rounds` goes on until the time is over, `crashes`
makes the case smaller that ended the process.
"""
