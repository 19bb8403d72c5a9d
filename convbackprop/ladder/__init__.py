"""The ladder: every variant of every pass.

A technique has one name: that of its variants, of their .cu files, and of the module here that holds their entries
beside their geometry. `registry` puts the entries together; nothing else in the package knows a variant.
"""
